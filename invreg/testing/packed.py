"""How do inputs of several tensors become one, so that the laws need to know of one tensor only?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invreg.groups import FiniteGroup, Group
from invreg.groups.batch import Batch, rebuilt, tensors
from invreg.testing.laws import Violation


@dataclass(frozen=True)
class Layout:
    """Where the entries of several tensors lie in one of shape ``(N, entries)``.

    Args:
        example: A batch of several tensors, which says the keys and the shapes of samples.
    """

    example: Batch

    @property
    def shapes(self) -> dict[Any, tuple[int, ...]]:
        """The shape of a sample of each tensor."""
        return {key: tuple(tensor.shape[1:]) for key, tensor in tensors(self.example)}

    def pack(self, batch: Batch) -> Tensor:
        """All tensors of a batch, one after another, in one."""
        return torch.cat([tensor.reshape(len(tensor), -1) for _, tensor in tensors(batch)], dim=1)

    def unpack(self, packed: Tensor) -> Batch:
        """The batch whose tensors were packed; views."""
        entries, start = {}, 0
        for key, shape in self.shapes.items():
            stop = start + torch.Size(shape).numel()
            entries[key] = packed[:, start:stop].view(len(packed), *shape)
            start = stop
        return rebuilt(self.example, entries)


@dataclass(frozen=True, repr=False)
class PackedGroup(Group):
    """A group that acts on several tensors, as it acts on what a layout makes of them."""

    group: Group
    layout: Layout

    def __repr__(self) -> str:
        return repr(self.group)

    @property
    def element_shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived, as those below
        """As of the group."""
        return self.group.element_shape

    @property
    def element_dtype(self) -> torch.dtype:  # type: ignore[override]
        """As of the group."""
        return self.group.element_dtype

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """As of the group."""
        return self.group.exact

    @property
    def local(self) -> bool:  # type: ignore[override]
        """As of the group."""
        return self.group.local

    @property
    def identity(self) -> Tensor:
        """As of the group."""
        return self.group.identity

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """As of the group; see ``Group.compose``."""
        return self.group.compose(g, h)

    def inverse(self, g: Tensor) -> Tensor:
        """As of the group; see ``Group.inverse``."""
        return self.group.inverse(g)

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """As of the group; see ``Group.sample``."""
        return self.group.sample(n, rng)

    def sample_non_identity(self, n: int, k: int, rng: torch.Generator | None = None) -> Tensor:
        """As of the group; see ``Group.sample_non_identity``."""
        return self.group.sample_non_identity(n, k, rng)

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """Unpacks the inputs, acts and packs them again."""
        return self._packed(self.group.act(g, self.layout.unpack(x)), x)

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Unpacks the maps, acts on them and packs them again."""
        return self._packed(self.group.act_on_map(g, self.layout.unpack(m)), m)

    def _packed(self, batch: Batch, x: Tensor) -> Tensor:
        """The batch in one tensor, if the group kept the form of each of its tensors."""
        expected = dict(tensors(self.layout.unpack(x)))
        found = {} if isinstance(batch, Tensor) else dict(tensors(batch))
        if found.keys() != expected.keys():
            raise Violation(f"act should return the entries {list(expected)}: got {list(found)}")
        for key, tensor in found.items():
            form = (tuple(tensor.shape), tensor.dtype, tensor.device)
            if form != (wanted := (tuple(expected[key].shape), expected[key].dtype, expected[key].device)):
                raise Violation(f"act should return an entry {key!r} of {wanted}: got {form}")
        return self.layout.pack(batch)


@dataclass(frozen=True, repr=False)
class FinitePackedGroup(PackedGroup, FiniteGroup):
    """The same for a finite group."""

    group: FiniteGroup

    @property
    def order(self) -> int:  # type: ignore[override]
        """As of the group."""
        return self.group.order


def packed(group: Group, layout: Layout) -> PackedGroup:
    """The group as it acts on inputs that are packed."""
    return FinitePackedGroup(group, layout) if isinstance(group, FiniteGroup) else PackedGroup(group, layout)
