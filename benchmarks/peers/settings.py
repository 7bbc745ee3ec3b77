"""What every peer is told of a problem. Imports nothing heavy: its time would count for each peer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """A latent of the model; positive ones have a Normal guide over their logarithm."""

    name: str
    shape: tuple[int, ...] = ()
    positive: bool = False

    @property
    def size(self) -> int:
        """How many numbers."""
        size = 1
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class Problem:
    """A model with its data, and how long it is fitted.

    Attributes:
        name: on the command line.
        title: in tables and pictures.
        model: which of the models; several problems share one.
        sites: the latents, in the order of the flat ``loc`` and ``log_scale``.
        num_data: what "per datum" divides by.
        steps: of a full run.
        quick_steps: of a quick one.
        batch: rows of a minibatch.
        rate: of Adam.
        tolerance: how far final ELBOs may differ between peers, in nats per datum.
        within: how near to the best final ELBO the target is, in nats per datum.
        draws: for each evaluation of the ELBO.
        solved_by_sweeps: whether coordinate ascent solves it too.
    """

    name: str
    title: str
    model: str
    sites: tuple[Site, ...]
    num_data: int
    steps: int
    quick_steps: int
    batch: int | None = None
    rate: float = 0.01
    tolerance: float = 0.01
    within: float = 0.01
    draws: int = 1_000
    solved_by_sweeps: bool = False

    @property
    def scale(self) -> float:
        """What a minibatch's terms are multiplied by."""
        return self.num_data / self.batch if self.batch else 1.0


COMPONENTS, FEATURES, GROUPS, IN_GROUP = 5, 50, 1_000, 10
ROWS, PIXELS, HIDDEN, CODE = 10_000, 784, 400, 20


def _mixture(num_data: int, steps: int, quick_steps: int, draws: int) -> Problem:
    return Problem(
        name=f"mixture-{num_data}",
        title=f"mixture, N = {num_data:,}",
        model="mixture",
        sites=(Site("mu", (COMPONENTS, 2)),),
        num_data=num_data,
        steps=steps,
        quick_steps=quick_steps,
        draws=draws,
        solved_by_sweeps=True,
    )


_WEIGHTS = (Site("w", (FEATURES,)),)
_SCHOOLS = (Site("mu"), Site("tau", positive=True), Site("theta", (8,)))
_HIERARCHY = (
    Site("mu"),
    Site("tau", positive=True),
    Site("sigma", positive=True),
    Site("theta", (GROUPS,)),
)
_ALL = (
    _mixture(10, 5_000, 600, 1_000),
    _mixture(1_000, 3_000, 600, 200),
    _mixture(100_000, 300, 200, 8),
    Problem("eight-schools", "eight schools", "schools", _SCHOOLS, 8, 3_000, 800),
    Problem("logistic", "logistic, all rows", "logistic", _WEIGHTS, ROWS, 1_000, 300, draws=50),
    Problem(
        "logistic-batches",
        "logistic, batches of 256",
        "logistic",
        _WEIGHTS,
        ROWS,
        1_500,
        500,
        batch=256,
        draws=50,
    ),
    Problem("hierarchy", "1,000 groups", "hierarchy", _HIERARCHY, 10_000, 3_000, 500, draws=200),
    Problem(
        "vae",
        "VAE 784-400-20, batches of 128",
        "vae",
        (),
        ROWS,
        1_500,
        100,
        batch=128,
        rate=1e-3,
        tolerance=1.0,
        within=0.5,
        draws=1,
    ),
)
PROBLEMS = {problem.name: problem for problem in _ALL}
