"""Where may a small finite group break a law, among all of its elements?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from invreg.groups import FiniteGroup

_LARGEST = 200
"""Of the orders of groups whose whole multiplication table is looked at."""

_MOST_ENTRIES = 5_000_000
"""Of all images of the probe together."""


def suspects(law: str, group: object, probe: Tensor) -> Iterator[dict[str, Tensor]]:
    """Elements, by the names of a law's parameters, with which it looks broken; none where the group is too large.

    Args:
        law: The name of a law that elements drawn at random did not break.
        group: The group.
        probe: A batch of one sample that elements can be told apart on.
    """
    if not isinstance(group, FiniteGroup) or group.order > _LARGEST or law not in (*_SUSPECTS, "closure", _ACTION):
        return
    everything = group.elements()
    table, inverses = group.compose(everything[:, None], everything[None]), group.inverse(everything)
    outside = [((stack < 0) | (stack >= group.order)).nonzero() for stack in (table, inverses)]
    if law == "closure":
        for elements in outside:
            yield from (_named(found) for found in elements[:1])
    elif any(len(elements) for elements in outside):  # another law's matter
        return
    elif law == _ACTION:
        yield from _acting_otherwise(group, table, probe)
    else:
        yield from map(_named, _SUSPECTS[law](table, inverses))


def _named(found: Tensor) -> dict[str, Tensor]:
    return dict(zip({1: "g", 2: "gh", 3: "fgh"}[len(found)], found, strict=True))


def _moved_by_identity(table: Tensor, inverses: Tensor) -> Iterator[Tensor]:
    everything = torch.arange(len(table))
    yield from ((table[0] != everything) | (table[:, 0] != everything)).nonzero()[:1]


def _not_cancelled(table: Tensor, inverses: Tensor) -> Iterator[Tensor]:
    everything = torch.arange(len(table))
    yield from ((table[inverses, everything] != 0) | (table[everything, inverses] != 0)).nonzero()[:1]


def _not_associative(table: Tensor, inverses: Tensor) -> Iterator[Tensor]:
    for f in range(len(table)):
        wrong = (table[table[f]] != table[f][table]).nonzero()  # (fg)h and f(gh), for all g and h
        if len(wrong):
            yield torch.cat([torch.tensor([f]), wrong[0]])
            return


_SUSPECTS: dict[str, Callable[[Tensor, Tensor], Iterator[Tensor]]] = {
    "identity": _moved_by_identity,
    "inverse": _not_cancelled,
    "associativity": _not_associative,
}
"""What looks at the table and the inverses, by the law that it is about."""

_ACTION = "compatibility"
"""The law that says what the table has to do with the action."""


def _acting_otherwise(group: FiniteGroup, table: Tensor, probe: Tensor) -> Iterator[dict[str, Tensor]]:
    """For each of a few generators, the element after which it acts least as the table says."""
    if group.order * probe.numel() > _MOST_ENTRIES:
        return
    everything = group.elements().to(probe.device)
    try:
        images = group.act(everything, probe.expand(group.order, *probe.shape[1:]))
    except Exception:  # by one of them, which the law finds
        yield from ({"g": group.identity, "h": h, "x": probe} for h in group.elements())
        return
    for g in _generators(table):
        gap = (group.act(torch.tensor(g), images) - images[table[g].to(probe.device)]).abs()
        rows = gap.reshape(len(gap), -1).amax(1).nan_to_num(posinf=torch.finfo(gap.dtype).max)
        if rows.any():
            yield {"g": torch.tensor(g), "h": rows.argmax().cpu(), "x": probe}


def _generators(table: Tensor) -> list[int]:
    """Elements whose products are the whole group, one after another where the ones before do not reach."""
    chosen: list[int] = []
    reached = torch.zeros(len(table), dtype=torch.bool)
    reached[0] = True
    while not reached.all():
        chosen.append(int((~reached).nonzero()[0]))
        before = 0
        while before < int(reached.sum()):
            before = int(reached.sum())
            reached[table[chosen][:, reached]] = True
    return chosen
