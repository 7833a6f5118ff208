"""How does a group act that only moves entries?"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from invreg.groups.contract import FiniteGroup


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
        sources = self.sources(tuple(x.shape[start:stop]), x.device)
        return _gather(x, sources[index, None], start, stop)

    def transform_each(self, g: Tensor, x: Tensor) -> Tensor:
        """Applies one element to each sample, by one gather."""
        start, stop = self._span(x)
        sources = self.sources(tuple(x.shape[start:stop]), x.device)
        return _gather(x, sources[g], start, stop)

    def orbit(self, x: Tensor, *, identity: bool = True) -> Tensor:
        """The batch under every element, by one gather; see ``FiniteGroup.orbit``."""
        start, stop = self._span(x)
        sources = self.sources(tuple(x.shape[start:stop]), x.device)[0 if identity else 1 :]
        return _gather(x.expand(len(sources), *x.shape), sources, start + 1, stop + 1)

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Moves the entries of a map; leaves alone one whose axes were summed away (size 1)."""
        self._check_action(g, m)
        start, stop = self._span(m)
        return m if m.shape[start:stop].numel() == 1 else self.act(g, m)

    def _span(self, x: Tensor) -> tuple[int, int]:
        """First axis that entries move along, and the one after the last, counted from the batch axis."""
        start, stop = (dim if dim >= 0 else x.ndim + dim for dim in (self.dims[0], self.dims[-1]))
        if not 1 <= start <= stop < x.ndim:
            raise ValueError(
                f"{self!r} moves entries along axes {self.dims}, which must exist and not be the batch axis 0: "
                f"got inputs of shape {tuple(x.shape)}."
            )
        return start, stop + 1


def _gather(x: Tensor, sources: Tensor, start: int, stop: int) -> Tensor:
    """Moves entries along axes ``start`` to ``stop`` of ``x``; ``sources`` has one row, or one per entry of axis 0."""
    flat = x.flatten(start, stop - 1)
    index = sources.view(len(sources), *[1] * (start - 1), sources.shape[1], *[1] * (flat.ndim - start - 1))
    return flat.gather(start, index.expand(flat.shape)).view(x.shape)
