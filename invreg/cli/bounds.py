"""Is the model invariant enough?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from invreg.audit.estimate import Estimate


@dataclass(frozen=True)
class Bound:
    """What a number of a report must not exceed, or not fall below.

    Args:
        name: The number's name in ``InvarianceReport.estimates``.
        value: The bound itself, which is allowed.
        least: Whether it is a lower bound.
    """

    name: str
    value: float
    least: bool = False

    def judged(self, estimates: Mapping[str, Estimate]) -> Verdict:
        """Compares the number's mean with the bound.

        Raises:
            ValueError: The number was not measured.
        """
        if self.name not in estimates:
            raise ValueError(f"{self.name} has a bound, but was not measured: {', '.join(estimates)} were.")
        estimate = estimates[self.name]
        beyond = self.value - estimate.mean if self.least else estimate.mean - self.value
        where = "below" if self.least else "above"
        if beyond > 0:
            return Verdict(
                False, f"{self.name} is {estimate}, which is {beyond:.4g} {where} its bound of {self.value:g}"
            )
        return Verdict(True, f"{self.name} is {estimate}, not {where} its bound of {self.value:g}")


@dataclass(frozen=True)
class Verdict:
    """Whether a number keeps its bound, and what to say of it."""

    kept: bool
    text: str


def bounds_of(max_error: Sequence[tuple[str, float]], min_consistency: float | None) -> list[Bound]:
    """The bounds that were asked for."""
    least = [] if min_consistency is None else [Bound("consistency", min_consistency, least=True)]
    return [*(Bound(name, value) for name, value in max_error), *least]
