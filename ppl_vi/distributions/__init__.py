"""The few distributions that Pyro lacks, the continuous ones with a reparameterized draw.

Pyro itself has the others with one: Normal, Laplace, StudentT, Logistic, Uniform, Exponential, Cauchy,
Pareto, Weibull, Gumbel, LogNormal, Gamma, Beta, Dirichlet, Chi2, FisherSnedecor and
MultivariateStudentT (elliptical). Where a parameter moves the support, as those of Triangular and
Reciprocal do, the score-function gradient is wrong, and the engine refuses it.

``IndexedCategorical`` is ``Categorical(probs[rows])`` for many rows and many categories.
Wishart latents, whose draws here need no second try, have a bijection with vectors
(``PositiveDefiniteTransform``), so that guides on the whole space reach them.
"""

from ppl_vi.distributions.bounded import Reciprocal, Triangular
from ppl_vi.distributions.half_line import Erlang, Gompertz, Rayleigh
from ppl_vi.distributions.indexed import IndexedCategorical
from ppl_vi.distributions.mixture import NormalMixture
from ppl_vi.distributions.positive_definite import PositiveDefiniteTransform
from ppl_vi.distributions.wishart import Wishart

__all__ = [
    "Erlang",
    "Gompertz",
    "IndexedCategorical",
    "NormalMixture",
    "PositiveDefiniteTransform",
    "Rayleigh",
    "Reciprocal",
    "Triangular",
    "Wishart",
]
