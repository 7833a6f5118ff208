"""How do inputs of several tensors become one, so that the laws need to know of one tensor only?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invreg.groups import FiniteGroup, Group
from invreg.groups.batch import Batch, map_tensors, rebuilt, tensors
from invreg.groups.same_elements import SameElements
from invreg.testing.laws import Violation, evened


@dataclass(frozen=True)
class Layout:
    """Where the entries of several tensors lie in one of shape ``(N, entries)``.

    Args:
        example: A batch of one sample of several tensors, which says the keys and the shapes of samples. Those of whole
            numbers are not packed: they are the same for every sample.
    """

    example: Batch

    @property
    def shapes(self) -> dict[Any, tuple[int, ...]]:
        """The shape of a sample of each tensor that is packed."""
        return {key: tuple(x.shape[1:]) for key, x in tensors(self.example) if x.is_floating_point()}

    def pack(self, batch: Batch) -> Tensor:
        """All tensors of a batch, one after another, in one."""
        entries = dict(tensors(batch))
        return torch.cat([entries[key].reshape(len(entries[key]), -1) for key in self.shapes], dim=1)

    def unpack(self, packed: Tensor) -> Batch:
        """The batch whose tensors were packed; views."""
        entries, start = {}, 0
        shapes = self.shapes
        for key, x in tensors(self.example):
            if key in shapes:
                stop = start + torch.Size(shapes[key]).numel()
                entries[key] = packed[:, start:stop].view(len(packed), *shapes[key])
                start = stop
            else:
                entries[key] = x.expand(len(packed), *x.shape[1:]).to(packed.device)
        return rebuilt(self.example, entries)

    def unpacked_position(self, sample: int, entry: int) -> tuple[Any, tuple[int, ...]]:
        """The key of what lies at an entry of the packed tensor, and its position there."""
        for key, shape in self.shapes.items():
            if entry < torch.Size(shape).numel():
                return key, (sample, *map(int, torch.unravel_index(torch.tensor(entry), shape) if shape else ()))
            entry -= torch.Size(shape).numel()
        raise IndexError(entry)


@dataclass(frozen=True, repr=False)
class PackedGroup(SameElements):
    """A group that acts on several tensors, as it acts on what a layout makes of them."""

    group: Group
    layout: Layout

    def __repr__(self) -> str:
        return repr(self.group)

    @property
    def lender(self) -> Group:
        """The group."""
        return self.group

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """As of the group."""
        return self.group.exact

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """Unpacks the inputs, acts and packs them again."""
        return self._packed(self.group.act(g, self.layout.unpack(x)), x)

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Unpacks the maps, acts on them and packs them again."""
        return self._packed(self.group.act_on_map(g, self.layout.unpack(m)), m)

    def evened(self, x: Tensor) -> Tensor:
        """Each tensor as ``evened`` makes it."""
        return self.layout.pack(map_tensors(evened, self.layout.unpack(x)))

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
        for key in expected.keys() - self.layout.shapes.keys():
            if expected[key].device.type != "meta" and not torch.equal(found[key], expected[key]):
                raise Violation(f"act should leave the entry {key!r} as it is")
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
