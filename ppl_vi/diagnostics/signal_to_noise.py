"""How much of a gradient is signal where a fit has ended: whether parameters would still move."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ppl_vi.data.streaming import Stream
from ppl_vi.diagnostics.gradient_draws import bench
from ppl_vi.diagnostics.gradient_variance import Moments
from ppl_vi.job import Job
from ppl_vi.objectives import ELBO

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("signal", "noise", "ratio", "components")


def signal_to_noise(job: Job, num_draws: int) -> pd.DataFrame:
    """The ELBO's gradient in each parameter, from draws on batches as a fit has them.

    signal = |E[g]|, of which the noise of the mean is taken off;  noise = sqrt(Σ_c Var[g_c])

    At an optimum the signal is 0 and all is noise; a ratio above 1 tells that steps still lead
    somewhere. To be called inside the fitted parameters.

    Args:
        job: the fitted model and guide.
        num_draws: gradients.

    Returns:
        A row for each unconstrained parameter: ``signal``, ``noise``, ``ratio``, ``components``.

    Raises:
        GuideError, FloatingPointError: there is no parameter, or a gradient is not finite.
    """
    import pandas as pd  # heavy, and not every fit needs it

    objective, plate = ELBO(), min(job.data_plates, default=None)
    with bench(job.model, job.guide, job.source, None, plate, None, None) as at:
        at.check(objective)
        moments, stream = Moments(at.precision), Stream(job.source)
        for _ in range(num_draws):
            moments.add(dataclasses.replace(at, batch=next(stream)).draw("ELBO()", objective))
    rows = {}
    for name, where in at.slices.items():
        variance = moments.variance[where].sum().item()
        size = moments.mean[where].square().sum().item()
        error = moments.squared_error[where].sum().item()
        signal, noise = max(0.0, size - error) ** 0.5, variance**0.5
        ratio = signal / noise if noise else float("inf") if signal else 0.0
        rows[name] = (signal, noise, ratio, where.stop - where.start)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(_COLUMNS))
    table.index.name = "parameter"
    return table
