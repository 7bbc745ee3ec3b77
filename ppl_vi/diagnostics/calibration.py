"""Simulation-based calibration of the marginals: is a guide shifted, or too narrow or too wide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_vi.counts import check_count
from ppl_vi.data.sources import data_source
from ppl_vi.diagnostics.refitting import Refits
from ppl_vi.diagnostics.uniformity import Ranks, symmetry_p, uniformity_p
from ppl_vi.errors import DataError
from ppl_vi.randomness import forked_rng

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Program = Callable[..., Any]
_SIMULATIONS, _DRAWS, _LEVEL, _FEWEST = 300, 500, 0.01, 20
_LINALG: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
_WIDTH = 0.2
"""The logarithm of a ratio of standard deviations that is worth a word."""
_COLUMNS = ("shift", "width", "p_symmetry", "p_uniformity", "flagged")


@dataclass(frozen=True)
class Calibration:
    """What simulation-based calibration found.

    Attributes:
        ranks: ``[simulations, *event]`` by continuous latent, the share of the fitted posterior below
            the value that made the data; uniform where the guide is the posterior.
        table: a row for each number of each latent: ``shift`` of the guide's centre from the truth, in
            the guide's standard deviations; ``width``, the true standard deviation over the guide's;
            ``p_symmetry`` and ``p_uniformity``; and ``flagged``.
        level: the probability that an exact guide has any number flagged.
        failed: how many data sets could not be fitted, and are left out.
    """

    ranks: Mapping[str, Tensor]
    table: pd.DataFrame
    level: float
    failed: int

    @property
    def passed(self) -> bool:
        """Whether no number is flagged."""
        return not self.table["flagged"].any()

    @property
    def words(self) -> str:
        """What was found, in a sentence."""
        flagged = self.table[self.table["flagged"]]
        size = len(next(iter(self.ranks.values()))) if self.ranks else 0
        if not len(flagged):
            return f"no marginal is shifted or too wide or narrow, as far as {size} data sets tell"
        worst = int(flagged[["p_symmetry", "p_uniformity"]].min(axis=1).argmin())
        row, others = flagged.iloc[worst], len(flagged) - 1
        said = f"{_label(flagged.index[worst])}: {_what(row)}"
        return said + (f"; {others} more are flagged" if others else "")

    def __str__(self) -> str:
        failed = f"\n{self.failed} data sets could not be fitted" if self.failed else ""
        return f"{self.words}\n{self.table.to_string(max_rows=20)}{failed}"

    def plot(self) -> Figure:
        """Histograms of the ranks, with the band in which an exact guide's lie."""
        from ppl_vi.diagnostics.calibration_picture import plot_calibration

        return plot_calibration(self)


def calibrate(
    model: Program,
    guide: Any = "normal",
    data: Any = None,
    *,
    simulations: int = _SIMULATIONS,
    num_draws: int = _DRAWS,
    seed: int | None = None,
    progress: bool = True,
    **fit_options: Any,
) -> Calibration:
    """Fit data sets from the prior, and see where the truth lies in each fitted marginal: VSBC.

        z_s ~ p(z),  x_s ~ p(x | z_s),  u_s = share of draws of q_s below z_s,  q_s fitted to x_s

    If q is the posterior, u is uniform. Ranks that lean to one side tell of a shifted guide (a test of
    symmetry), ranks at both ends of one that is too narrow, ranks in the middle of one that is too
    wide (a test of uniformity). The two p-values of every number are held against 0.01 divided by how
    many there are, so that an exact guide has any number flagged with a probability of at most 0.01.
    From 300 data sets a guide whose centre is half a standard deviation off, or whose variance is half
    the true one, is flagged with more than 99 % among up to 100 numbers.

    It judges the guide over the prior, not on the data at hand; a prior that is wide beside what data
    tell makes data that nobody has seen. It looks at marginals alone, so that a mean-field guide of the
    right marginals passes. Parameters of the model (``pyro.param``) are held at their values in the
    parameter store, or their first ones.

    Args:
        model: as in ``fit``; without ``pyro.factor`` and improper priors.
        guide: as in ``fit``: names and classes are built anew for each data set, others begin each fit
            where they are. A guide without trainable parameters (an exact one, say) takes no steps.
        data: as in ``fit``, for what is not simulated: their shapes, and arguments that are not
            observed.
        simulations: S, 20 or more.
        num_draws: from each fitted guide.
        seed: for everything random; the global random state is left as it was.
        progress: show a progress bar.
        **fit_options: of ``fit``, such as ``steps``.

    Returns:
        Ranks, and a table of the tests; printed, it says what was found.

    Raises:
        ValueError: too few simulations or draws, or a seed that not all generators take.
        ModelError, GuideError, DataError: the model cannot be simulated, or as in ``fit``.
        FloatingPointError: no data set could be fitted.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_vi import calibrate
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # half of the true variance
        ...     sd = (0.5 / (1 + len(x))) ** 0.5
        ...     pyro.sample("z", dist.Normal(x.sum() / (1 + len(x)), sd))
        >>> found = calibrate(model, guide, torch.zeros(9), simulations=100, seed=0, progress=False)
        >>> found.passed, found.words[:28]
        (False, 'z: the guide is too narrow, ')

    Source: Yao, Vehtari, Simpson and Gelman (2018); Talts, Betancourt, Simpson, Vehtari and Gelman
    (2018), for the uniformity of ranks.
    """
    check_count("num_draws", num_draws)
    check_count("simulations", simulations)
    if simulations < _FEWEST:
        raise ValueError(f"simulations must be {_FEWEST} or more, not {simulations}.")
    source = data_source(data, fit_options.pop("batch_size", None), fit_options.pop("device", None))
    store = pyro.get_param_store()
    ranks: dict[str, list[Tensor]] = {}
    failed = 0
    randomness = nullcontext() if seed is None else forked_rng(seed=seed)
    around = store.scope(store.get_state())
    with randomness, around, Refits(model, guide, source, fit_options) as refits:
        for _ in tqdm(range(simulations), disable=not progress, unit="data set"):
            try:
                found = refits.ranks(num_draws)
            except (FloatingPointError, DataError, _LINALG):
                failed += 1
                continue
            for name, rank in found.items():
                ranks.setdefault(name, []).append(rank)
    if simulations - failed < _FEWEST:
        raise FloatingPointError(
            f"calibrate: {failed} of {simulations} data sets from the prior could not be fitted. Look "
            f"at draws of the prior: a narrower one makes data of a usual size."
        )
    joined = {name: torch.stack(each) for name, each in ranks.items()}
    return Calibration(joined, _table(joined), _LEVEL, failed)


def _table(ranks: Mapping[str, Tensor]) -> pd.DataFrame:
    import pandas as pd  # heavy, and not every fit needs it
    from scipy.stats import norm

    rows, index = [], []
    limit = _LEVEL / (2 * max(1, sum(r[0].numel() for r in ranks.values())))
    for name, rank in ranks.items():
        shape = rank.shape[1:]
        columns: Ranks = rank.reshape(len(rank), -1).numpy()
        for place, own in zip(np.ndindex(*shape), columns.T, strict=True):
            scores = norm.ppf(own)
            p = symmetry_p(own), uniformity_p(own)
            rows.append((-scores.mean(), scores.std(), *p, min(p) < limit))
            index.append((name, ", ".join(map(str, place))))
    names = pd.MultiIndex.from_tuples(index, names=["site", "number"]) if index else None
    return pd.DataFrame(rows, index=names, columns=list(_COLUMNS))


def _label(key: Any) -> str:
    site, number = key
    return f"{site}[{number}]" if number else str(site)


def _what(row: Any) -> str:
    """How a flagged number is off."""
    said = []
    if row["p_symmetry"] < _LEVEL:
        side = "above" if row["shift"] > 0 else "below"
        size = f"{abs(row['shift']):.2f} of its standard deviations"
        said.append(f"the guide's centre is {size} {side} the truth")
    if not said or abs(math.log(max(row["width"], 1e-3))) > _WIDTH:
        kind = "narrow" if row["width"] > 1 else "wide"
        ratio = f"the true standard deviation is {row['width']:.2f} times its own"
        said.append(f"the guide is too {kind}, {ratio}")
    return ", and ".join(said)
