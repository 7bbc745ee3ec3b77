"""A number with its Monte Carlo standard error."""

from __future__ import annotations


class Estimate(float):
    """A Monte Carlo estimate: a float that carries its standard error.

    Args:
        value: the estimate.
        standard_error: of the estimate, in the same unit; 0 for an exact number.

    Example:
        >>> elbo = Estimate(-12.5, standard_error=0.25)
        >>> print(elbo, "|", elbo + 1)
        -12.500 ± 0.250 | -11.5
    """

    standard_error: float

    def __new__(cls, value: float, standard_error: float = 0.0) -> Estimate:
        estimate = super().__new__(cls, value)
        estimate.standard_error = float(standard_error)
        return estimate

    def __str__(self) -> str:
        return f"{float(self):.3f} ± {self.standard_error:.3f}"

    def __repr__(self) -> str:
        return f"Estimate({float(self)!r}, standard_error={self.standard_error!r})"

    def __reduce__(self) -> tuple[type[Estimate], tuple[float, float]]:
        return type(self), (float(self), self.standard_error)
