"""How does a group act that only moves entries?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from invreg.groups.contract import FiniteGroup, Group
from invreg.groups.transformations import shortened


class PositionGroup(FiniteGroup):
    """A finite group whose elements move entries along adjacent axes and change no value.

    A subclass defines ``dims`` and ``sources``; the action on batches, on single samples and on whole orbits
    is then one gather. It overrides ``transform`` where torch has a faster operation for a single element.

    Attributes:
        dims: The adjacent axes along which entries move, in order. Not the batch axis.
    """

    exact = True

    @property
    @abstractmethod
    def dims(self) -> tuple[int, ...]:
        """The adjacent axes along which entries move, in order."""

    @abstractmethod
    def sources(self, sizes: tuple[int, ...], device: torch.device) -> Tensor:
        """Where each entry comes from.

        Args:
            sizes: The sizes of ``dims``.
            device: Where to make the result.

        Returns:
            Shape ``(order, P)`` with ``P`` the product of ``sizes``, int64: element ``g`` brings to position
            ``p`` the entry that was at ``sources[g, p]``.

        Raises:
            ValueError: The group cannot act on axes of these sizes.
        """

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Applies one element to a whole batch, by one gather."""
        start, stop = self._span(x)
        return gather(x, self._sources_for(x)[index, None], start, stop)

    def transform_each(self, g: Tensor, x: Tensor) -> Tensor:
        """Applies one element to each sample, by one gather."""
        start, stop = self._span(x)
        return gather(x, self._sources_for(x)[g], start, stop)

    def orbit(self, x: Tensor, *, identity: bool = True) -> Tensor:
        """The batch under every element, by one gather; see ``FiniteGroup.orbit``."""
        start, stop = self._span(x)
        sources = self._sources_for(x)[0 if identity else 1 :]
        return gather(x.expand(len(sources), *x.shape), sources, start + 1, stop + 1)

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Moves the entries of a map; leaves alone one whose axes were summed away (size 1)."""
        self._check_action(g, m)
        start, stop = self._span(m)
        return m if m.shape[start:stop].numel() == 1 else self.act(g, m)

    def _sources_for(self, x: Tensor) -> Tensor:
        start, stop = self._span(x)
        return self.sources(tuple(x.shape[start:stop]), x.device)

    def _span(self, x: Tensor) -> tuple[int, int]:
        return span(self, self.dims, x)


def span(group: Group, dims: tuple[int, ...], x: Tensor) -> tuple[int, int]:
    """First of the adjacent axes that entries move along, and the one after the last, counted from the batch axis."""
    start, stop = (dim if dim >= 0 else x.ndim + dim for dim in (dims[0], dims[-1]))
    if not 1 <= start <= stop < x.ndim:
        raise ValueError(
            f"{group!r} moves entries along axes {dims}, which must exist and not be the batch axis 0: "
            f"got inputs of shape {tuple(x.shape)}."
        )
    return start, stop + 1


def gather(x: Tensor, sources: Tensor, start: int, stop: int) -> Tensor:
    """Moves entries along axes ``start`` to ``stop`` of ``x``; ``sources`` has one row, or one per entry of axis 0.

    Entries that are blocks, with axes after ``stop``, are copied as such, which is several times faster than a gather.
    """
    flat = x.flatten(start, stop - 1)
    blocks = flat.shape[start + 1 :].numel()
    if blocks == 1 or not flat.is_contiguous():
        index = sources.view(len(sources), *[1] * (start - 1), sources.shape[1], *[1] * (flat.ndim - start - 1))
        return flat.gather(start, index.expand(flat.shape)).view(x.shape)
    if len(sources) == 1:
        return flat.index_select(start, sources[0]).view(x.shape)
    lists = flat.shape[1:start].numel()  # how many lists of blocks each sample holds
    first = sources.shape[1] * torch.arange(len(x) * lists, device=x.device).view(len(x), lists, 1)
    rows = flat.view(len(x) * lists * sources.shape[1], blocks)
    return rows.index_select(0, (sources[:, None] + first).flatten()).view(x.shape)


def in_cycles(permutation: Sequence[int]) -> str:
    """The permutation that takes ``i`` to ``permutation[i]``, as cycles: each position goes to the one after it."""
    cycles, seen = [], set()
    for start in range(len(permutation)):
        cycle = []
        while start not in seen:
            seen.add(start)
            cycle.append(str(start))
            start = permutation[start]
        if len(cycle) > 1:
            cycles.append(f"({' '.join(cycle)})")
    return shortened("".join(cycles)) or "identity"
