"""Pyro's autoguides by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuide,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from ppl_vi.registry import GuideStart, register_guide

Model = Callable[..., Any]


def _local(family: type[AutoGuide]) -> Callable[[Model, GuideStart], AutoGuide]:
    """A guide with parameters for each site, which can be subsampled."""

    def build(model: Model, start: GuideStart) -> AutoGuide:
        return family(model, init_loc_fn=start.init_loc_fn, create_plates=start.create_plates)

    return build


def _joint(family: type[AutoGuide]) -> Callable[[Model, GuideStart], AutoGuide]:
    """A guide over one vector of all latents."""

    def build(model: Model, start: GuideStart) -> AutoGuide:
        return family(model, init_loc_fn=start.init_loc_fn)

    return build


register_guide("normal", _local(AutoNormal))
register_guide("delta", _local(AutoDelta))
register_guide("multivariate_normal", _joint(AutoMultivariateNormal))
register_guide("lowrank", _joint(AutoLowRankMultivariateNormal))
