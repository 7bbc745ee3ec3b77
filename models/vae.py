"""The variational autoencoder's generative half: deep latent Gaussian models of data in rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from ppl_vi.errors import DataError, ModelError
from ppl_vi.models.checks import count, deviation, one_of
from ppl_vi.networks import applied_to_rows, called, perceptron_decoder

Likelihood = Literal["bernoulli", "gaussian", "categorical"]
Prior = Literal["normal", "learned", "mixture"]

_START_NOISE = 0.5
"""Of the data's standard deviation."""


class VAE(nn.Module):
    """A deep latent Gaussian model of rows, a Pyro model ``model(x)``.

    z_i ~ p(z),  x_i ~ p(x | decoder(z_i)),  where p(x | t) is for each entry

        "bernoulli"    Bernoulli(logits=t)
        "gaussian"     Normal(t, noise), with one learned noise
        "categorical"  Categorical(logits=t), over ``num_categories`` values, t's last dimension

    and p(z) is ``"normal"``, Normal(0, 1); ``"learned"``, a Normal with learned means and scales; or
    ``"mixture"``, a learned mixture of ``num_components`` such Normals. Its guide is an
    ``EncoderGuide``; the weights of the decoder are learned with it.

    Sites: ``z`` [N, size], ``x`` [N, *event_shape]. Parameters: ``decoder$$$...``, ``noise``,
    ``prior_loc``, ``prior_scale``, ``prior_logits``.

    Args:
        event_shape: the shape of one row, ``(784,)`` or ``(28, 28)``.
        size: of the latent.
        likelihood: ``"bernoulli"``, ``"gaussian"`` or ``"categorical"``.
        prior: ``"normal"``, ``"learned"`` or ``"mixture"``.
        decoder: any module from ``[rows, size]`` to ``[rows, *event_shape]`` (with a last dimension
            ``num_categories`` for categories); by default a multilayer perceptron.
        hidden: sizes of the default decoder's hidden layers; none for an affine decoder.
        num_components: of the mixture prior.
        num_categories: of categorical entries.

    Raises:
        ModelError: an option is not one of these; the decoder does not take latents, or gives rows
            of another shape.
        DataError: rows of another shape, or outside the likelihood's support.

    Example:
        >>> import torch
        >>> from ppl_vi.models import VAE
        >>> model = VAE((28, 28), 20)
        >>> model.decode(torch.zeros(3, 20)).shape
        torch.Size([3, 28, 28])

    Source: Kingma and Welling (2014); Tomczak and Welling (2018) for mixture priors.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        size: int,
        *,
        likelihood: Likelihood = "bernoulli",
        prior: Prior = "normal",
        decoder: nn.Module | None = None,
        hidden: Sequence[int] = (400,),
        num_components: int = 10,
        num_categories: int = 256,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(count("event_shape", length) for length in event_shape)
        self.size = count("size", size)
        self.likelihood = one_of("likelihood", likelihood, ("bernoulli", "gaussian", "categorical"))
        self.prior = one_of("prior", prior, ("normal", "learned", "mixture"))
        self.num_components = count("num_components", num_components)
        self.num_categories = count("num_categories", num_categories)
        self.output_shape = self.event_shape
        if likelihood == "categorical":
            self.output_shape = (*self.event_shape, self.num_categories)
        self.decoder = decoder or perceptron_decoder(self.size, self.output_shape, hidden)

    def forward(self, x: Tensor) -> None:
        """Draw latents and observe the rows."""
        self._check_shape(x)
        pyro.module("decoder", self.decoder)
        prior, noise = self._prior(x), self._noise(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", self._likelihood(self._output(z), noise), obs=x)

    def decode(self, z: Tensor) -> Tensor:
        """``[..., *event_shape]``: the expected entries of rows with these latents.

        Args:
            z: ``[..., size]``.
        """
        return self._likelihood_mean(self._output(z))

    def initial_values(self, x: Tensor) -> dict[str, Tensor]:
        """Where parameters start; and a check of all rows, since a fit begins with this.

        Raises:
            DataError: an entry is outside the likelihood's support.
        """
        self._check_shape(x)
        self._check_support(x)
        if self.likelihood != "gaussian":
            return {}
        return {"noise": _START_NOISE * deviation(x).mean()}

    def _output(self, z: Tensor) -> Tensor:
        decoder = partial(called, self.decoder, "VAE: the decoder", ModelError)
        output = applied_to_rows(decoder, z)
        found = output.shape[z.dim() - 1 :]
        if found != self.output_shape:
            raise ModelError(
                f"VAE: the decoder ({type(self.decoder).__name__}) should give rows of shape "
                f"{list(self.output_shape)}, not {list(found)}. Change its last layer."
            )
        return output

    def _likelihood(self, output: Tensor, noise: Tensor | None) -> Any:
        if self.likelihood == "bernoulli":
            family: Any = dist.Bernoulli(logits=output)
        elif self.likelihood == "categorical":
            family = dist.Categorical(logits=output)
        else:
            family = dist.Normal(output, noise)
        return family.to_event(len(self.event_shape))

    def _likelihood_mean(self, output: Tensor) -> Tensor:
        if self.likelihood == "bernoulli":
            return output.sigmoid()
        if self.likelihood == "categorical":
            values = torch.arange(self.num_categories, device=output.device).to(output)
            return (output.softmax(-1) * values).sum(-1)
        return output

    def _noise(self, x: Tensor) -> Tensor | None:
        if self.likelihood != "gaussian":
            return None
        return self._positive("noise", lambda: x.new_tensor(1.0))

    def _prior(self, x: Tensor) -> Any:
        kind = {"device": x.device, "dtype": x.dtype if x.is_floating_point() else None}
        if self.prior == "normal":
            return dist.Normal(torch.zeros(self.size, **kind), 1.0).to_event(1)  # type: ignore[arg-type]
        many = (self.num_components,) if self.prior == "mixture" else ()
        # Apart, or components would move as one.
        loc = pyro.param("prior_loc", lambda: torch.randn(*many, self.size, **kind) * bool(many))  # type: ignore[arg-type]
        scale = self._positive("prior_scale", lambda: torch.ones_like(loc))
        components = dist.Normal(loc, scale).to_event(1)
        if not many:
            return components
        logits = pyro.param("prior_logits", lambda: torch.zeros(*many, **kind))  # type: ignore[arg-type]
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)

    @staticmethod
    def _positive(name: str, start: Callable[[], Tensor]) -> Tensor:
        value: Tensor = pyro.param(name, start, constraint=constraints.positive)
        return value

    def _check_shape(self, x: Any) -> None:
        fits = isinstance(x, Tensor) and x.dim() > 0 and tuple(x.shape[1:]) == self.event_shape
        wanted = f"VAE: data must be a tensor of shape {['N', *self.event_shape]}".replace("'", "")
        if not fits:
            found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise DataError(f"{wanted}, not {found}. Pass x.reshape(-1, *model.event_shape).")
        if self.likelihood == "categorical" and x.is_floating_point():
            raise DataError(f"{wanted} and of integers, not {x.dtype}. Pass x.long().")
        if self.likelihood != "categorical" and not x.is_floating_point():
            raise DataError(f"{wanted} and of floats, not {x.dtype}. Pass x.float().")

    def _check_support(self, x: Tensor) -> None:
        low, high = x.min().item(), x.max().item()
        found = f"and run from {low:g} to {high:g}"
        if self.likelihood == "bernoulli" and not ((x == 0) | (x == 1)).all():
            raise DataError(
                f"VAE: images must be 0 or 1 with likelihood='bernoulli' {found}. Scale them to [0, 1] "
                f"and binarize them, (x > 0.5).float() or torch.bernoulli(x), or use 'gaussian'."
            )
        if self.likelihood == "categorical" and not 0 <= low <= high < self.num_categories:
            raise DataError(
                f"VAE: entries must be integers from 0 to {self.num_categories - 1} with "
                f"likelihood='categorical' {found}. Set num_categories, or correct the data."
            )
