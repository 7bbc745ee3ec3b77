"""From the parameters of each site to the flat ones in which peers are compared."""

from __future__ import annotations

import numpy as np

from peers.settings import Problem


def flat(problem: Problem, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters by site, joined in the order of the sites."""
    if not problem.sites:
        return found
    return {
        kind: np.concatenate([found[f"{site.name}_{kind}"].reshape(-1) for site in problem.sites])
        for kind in ("loc", "log_scale")
    }
