"""Runs the exhibits one after the other and writes the page.

python -m examples.paper             Table 1 and the figures; goes on where it was stopped
python -m examples.paper --quick     everything, on small digits and with hardly any training
"""

from __future__ import annotations

from examples.paper import (
    beyond,
    constraint,
    cost,
    decay,
    drift,
    embedding,
    gap,
    gradient_flow,
    jacobian,
    page,
    saliency_orbits,
    table1,
)
from examples.paper.runs import Workplace, workplace

REPRODUCTION = (gradient_flow, table1, saliency_orbits, embedding, drift, jacobian)
BEYOND = (constraint, gap, cost, decay, beyond)


def main(place: Workplace) -> None:
    """Runs what was asked for."""
    exhibits = (*REPRODUCTION, *BEYOND) if place.quick else REPRODUCTION
    for number, exhibit in enumerate(exhibits, 1):
        print(f"{number} of {len(exhibits)}: {(exhibit.__doc__ or '').splitlines()[0]}", flush=True)
        exhibit.main(place)
    page.main(place)


if __name__ == "__main__":
    main(workplace(description=__doc__))
