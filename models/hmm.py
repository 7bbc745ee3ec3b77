"""Hidden Markov models, with Gaussian and with categorical emissions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.clusters import find_clusters
from ppl_vi.errors import DataError
from ppl_vi.models.checks import check_shape, count, positive

_SPREAD = 0.3
"""Of the data's own."""
_STAYING = 0.5
"""Where chains start, the probability to stay in a state, beside an even share."""


def _markov_chains(
    num_states: int,
    concentration: float,
    y: Tensor,
    lengths: Tensor | None,
    emit: Callable[[Tensor], Any],
    like: Tensor,
) -> None:
    """States along time for each sequence, and what they emit.

    Args:
        num_states: K.
        concentration: of the prior on the first state and on each row of transitions.
        y: ``[sequences, T, *event]``.
        lengths: ``[sequences]``.
        emit: the distribution of an observation, given its state.
        like: of the dtype of probabilities.
    """
    prior = dist.Dirichlet(like.new_full((num_states,), concentration))
    initial = pyro.sample("initial", prior)
    with pyro.plate("from_state", num_states):
        transition = pyro.sample("transition", prior)
    # Row 0 is where chains begin. In the last, where they are when their sequence has ended, nothing is
    # unknown, so that it adds nothing to the bound.
    even = like.new_full((1, num_states), 1 / num_states)
    rows = torch.cat([initial.unsqueeze(-2), transition, even])
    z: Any = torch.tensor(-1, device=y.device)
    with pyro.plate("sequences", len(y)):
        for t in pyro.markov(range(y.shape[1])):
            if lengths is None:
                z = pyro.sample(f"z_{t}", dist.Categorical(rows[z + 1]))
                pyro.sample(f"y_{t}", emit(z), obs=y[:, t])
            else:
                running = t < lengths
                row = torch.where(running, z + 1, num_states + 1)
                z = pyro.sample(f"z_{t}", dist.Categorical(rows[row]))
                pyro.sample(f"y_{t}", emit(z).mask(running), obs=y[:, t])


def _sequences(name: str, y: Tensor, event_dim: int, lengths: Tensor | None) -> Tensor:
    """``[sequences, T, *event]`` of one sequence or of several, checked."""
    shapes = ("[T, D]", "[sequences, T, D]") if event_dim else ("[T]", "[sequences, T]")
    check_shape(f"{name}: y", y, *shapes, integer=not event_dim)
    y = y if y.dim() == 2 + event_dim else y.unsqueeze(0)
    if lengths is not None:
        check_shape(f"{name}: lengths", lengths, "[sequences]", integer=True)
        if len(lengths) != len(y):
            raise DataError(
                f"{name}: lengths must have one entry for each of the {len(y)} sequences, not "
                f"{len(lengths)}."
            )
    return y


def _running(y: Tensor, lengths: Tensor | None) -> Tensor:
    """``[sequences, T]``: whether a sequence has not ended yet."""
    if lengths is None:
        return torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
    return torch.arange(y.shape[1], device=y.device) < lengths.unsqueeze(-1)


def _moments(y: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """``[D]``: mean and standard deviation of what is observed, one in place of a deviation of 0."""
    weights = _running(y, lengths).to(y).unsqueeze(-1)
    total = weights.sum()
    mean = (weights * y).sum((0, 1)) / total
    deviation = ((weights * (y - mean).square()).sum((0, 1)) / total).sqrt()
    return mean, torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def _start_of_chains(num_states: int, like: Tensor) -> dict[str, Tensor]:
    """Where the chains' own sites start: at states that tend to stay."""
    even = like.new_full((num_states,), 1 / num_states)
    staying = _STAYING * torch.eye(num_states).to(like) + (1 - _STAYING) * even
    return {"initial": even, "transition": staying}


class GaussianHMM:
    """Chains of hidden states that emit Gaussians, a Pyro model ``model(y, lengths=None)``.

    z_1 ~ Categorical(initial),  z_t ~ Categorical(transition_{z_{t-1}}),
    y_t ~ Normal(mu_{z_t}, precision_{z_t}^-½),
    mu_k ~ Normal(mean of the data, tau),  precision_kd ~ Gamma(1, spread_d²),
    initial, transition_k ~ Dirichlet(concentration)

    Sites: ``initial`` [K], ``transition`` [K, K], ``mu`` [K, D], ``precision`` [K, D], and for each t
    from 0 ``z_t`` and ``y_t``. States are summed out exactly, in time linear in T.

    Args:
        num_states: K.
        concentration: of the Dirichlet priors, for each state.
        tau: prior standard deviation of the means in the data's unit; the data's own by default.
        spread: the prior's guess of the standard deviation within states in the data's unit; by
            default 0.3 of the data's own. It counts as two rows do, so a small guess does no harm.

    Data are ``y`` [T, D], or [sequences, T, D] with ``lengths`` [sequences] where sequences are shorter
    than T: what lies beyond a sequence's length is ignored, exactly, but must be finite.

    Raises:
        ModelError: an argument is no number of its kind.
        DataError: the data have another shape, or fewer distinct rows than states.

    Example:
        >>> import torch
        >>> from ppl_vi import fit
        >>> from ppl_vi.models import GaussianHMM
        >>> y = torch.tensor([[-3.0], [3.0]]).repeat_interleave(10, 0) + 0.5 * torch.randn(20, 1)
        >>> result = fit(GaussianHMM(2), "cavi", y, seed=0, progress=False)
        >>> result.guide.factors()["mu"].mean.round().flatten()
        tensor([-3.,  3.])

    Source: Rabiner (1989); Beal (2003), chapter 3.
    """

    def __init__(
        self,
        num_states: int,
        *,
        concentration: float = 1.0,
        tau: float | None = None,
        spread: float | None = None,
    ) -> None:
        self.num_states = count("num_states", num_states)
        self.concentration = positive("concentration", concentration)
        self.tau = None if tau is None else positive("tau", tau)
        self.spread = None if spread is None else positive("spread", spread)

    def __call__(self, y: Tensor, lengths: Tensor | None = None) -> None:
        """The joint density of the latents and the data."""
        y = _sequences("GaussianHMM", y, 1, lengths)
        center, own = _moments(y, lengths)
        tau = own if self.tau is None else torch.full_like(own, self.tau)
        spread = _SPREAD * own
        spread = spread if self.spread is None else torch.full_like(own, self.spread)
        with pyro.plate("states", self.num_states):
            mu = pyro.sample("mu", dist.Normal(center, tau).to_event(1))
            prior = dist.Gamma(torch.ones_like(own), spread.square())
            precision = pyro.sample("precision", prior.to_event(1))
        _markov_chains(
            self.num_states,
            self.concentration,
            y,
            lengths,
            lambda z: dist.Normal(mu[z], precision[z].rsqrt()).to_event(1),
            y,
        )

    def initial_values(self, y: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """Starting values by site: clusters by k-means++ and their moments.

        Args:
            y: ``[T, D]`` or ``[sequences, T, D]``.
            lengths: ``[sequences]``.

        Raises:
            DataError: there are fewer distinct rows than states.
        """
        y = _sequences("GaussianHMM", y, 1, lengths)
        clusters = find_clusters(y[_running(y, lengths)], self.num_states)
        precision = clusters.deviations.square().reciprocal()
        own = _start_of_chains(self.num_states, y)
        return {"mu": clusters.means, "precision": precision, **own}


class CategoricalHMM:
    """Chains of hidden states that emit symbols, a Pyro model ``model(y, lengths=None)``.

    z_1 ~ Categorical(initial),  z_t ~ Categorical(transition_{z_{t-1}}),
    y_t ~ Categorical(emission_{z_t}),
    initial, transition_k ~ Dirichlet(concentration),  emission_k ~ Dirichlet(emission_concentration)

    Sites: ``initial`` [K], ``transition`` [K, K], ``emission`` [K, V], and for t = 0, 1, ... ``z_t``
    and ``y_t``. States are summed out exactly, in time linear in T.

    Args:
        num_states: K.
        num_symbols: V.
        concentration: of the Dirichlet priors on states, for each.
        emission_concentration: of the Dirichlet priors on symbols, for each.

    Data are ``y`` [T], or [sequences, T], integers from 0, with ``lengths`` [sequences] where sequences
    are shorter than T: what lies beyond a sequence's length is ignored, exactly, but must be a symbol.

    Raises:
        ModelError: an argument is no number of its kind.
        DataError: the data have another shape.

    Example:
        >>> import torch
        >>> from ppl_vi import fit
        >>> from ppl_vi.models import CategoricalHMM
        >>> y = torch.tensor([0, 1]).repeat(10)
        >>> result = fit(CategoricalHMM(2, 2), "cavi", y, seed=0, restarts=2, progress=False)
        >>> emission = result.guide.factors()["emission"].mean
        >>> emission[emission[:, 0].argsort()].round()
        tensor([[0., 1.],
                [1., 0.]])

    Source: Rabiner (1989); MacKay (1997), ensemble learning for hidden Markov models.
    """

    def __init__(
        self,
        num_states: int,
        num_symbols: int,
        *,
        concentration: float = 1.0,
        emission_concentration: float = 1.0,
    ) -> None:
        self.num_states = count("num_states", num_states)
        self.num_symbols = count("num_symbols", num_symbols)
        self.concentration = positive("concentration", concentration)
        given = positive("emission_concentration", emission_concentration)
        self.emission_concentration = given

    def __call__(self, y: Tensor, lengths: Tensor | None = None) -> None:
        """The joint density of the latents and the data."""
        y = _sequences("CategoricalHMM", y, 0, lengths)
        one = torch.ones((), device=y.device)
        with pyro.plate("states", self.num_states):
            prior = dist.Dirichlet(self.emission_concentration * one.expand(self.num_symbols))
            emission = pyro.sample("emission", prior)
        _markov_chains(
            self.num_states,
            self.concentration,
            y,
            lengths,
            lambda z: dist.Categorical(emission[z]),
            one,
        )
