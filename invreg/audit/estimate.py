"""How is a mean told together with how sure it is?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over samples and how sure it is.

    Args:
        mean: The mean.
        standard_error: Its standard error over samples; None where one sample alone was seen.
        count: How many samples.

    Example:
        >>> print(Estimate(0.25, 0.01, 100))
        0.25 ± 0.01
        >>> float(Estimate(0.25, 0.01, 100))
        0.25
    """

    mean: float
    standard_error: float | None
    count: int

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        if self.standard_error is None:
            return f"{self.mean:.4g}"
        places = "3.0f" if 100 <= self.standard_error < 10_000 else ".2g"  # no power of ten beside a number without
        return f"{self.mean:.4g} ± {self.standard_error:{places}}"
