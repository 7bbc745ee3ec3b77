"""Why a fit stopped."""

from __future__ import annotations

from enum import Enum


class StopReason(Enum):
    """Why a fit stopped; ``str(reason)`` is the sentence shown to a person."""

    STEPS = "all the steps asked for were taken"
    CONVERGED = "the ELBO rises no more"
    CLOSED_FORM = "the posterior was found in closed form from a fitted one"
    CALLBACK = "a callback asked to stop"

    def __str__(self) -> str:
        return self.value
