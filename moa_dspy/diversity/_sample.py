from __future__ import annotations

from dataclasses import dataclass
from math import nan, sqrt
from statistics import fmean, stdev


@dataclass(frozen=True, slots=True)
class Sample:
    """One number for each example that has one, and what they say of their mean.

    Attributes:
        values: In the order of the examples; an interval of one's choice is made from these.
        n_left_out: Examples without a number.
    """

    values: tuple[float, ...]
    n_left_out: int = 0

    @property
    def n(self) -> int:
        """Number of examples that count."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over those examples; NaN without one."""
        return fmean(self.values) if self.values else nan

    @property
    def standard_error(self) -> float:
        """Sample standard deviation (n - 1) over the root of n; NaN below two examples."""
        return stdev(self.values) / sqrt(self.n) if self.n > 1 else nan

    def __str__(self) -> str:
        """Mean, standard error and counts, in one line."""
        left_out = f", {self.n_left_out} left out" if self.n_left_out else ""
        return f"{self.mean:+.4f} +- {self.standard_error:.4f} (n = {self.n}{left_out})"
