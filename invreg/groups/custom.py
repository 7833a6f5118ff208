"""How does a group come from callables, or from permutations?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from invreg.groups.contract import FiniteGroup
from invreg.groups.positions import PositionGroup, in_cycles
from invreg.groups.probe import distinct_values, probe_shapes
from invreg.groups.transformations import checked

Action = Callable[[Tensor], Tensor]

_ROUNDING = 1e-9
"""How far float64 rounding may move the result of an action, relative to the largest entry of the probe."""


class TableGroup(FiniteGroup):
    """A finite group that composes by looking into ``_table``, its multiplication table."""

    _table: Tensor

    def cayley_table(self) -> Tensor:
        """The multiplication table; see ``FiniteGroup.cayley_table``."""
        return self._table.clone()

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """Looks the products up; see ``Group.compose``."""
        self._check_elements(g, h)
        return self._table.to(g.device)[g, h]

    def inverse(self, g: Tensor) -> Tensor:
        """Looks up with what the product is the identity; see ``Group.inverse``."""
        self._check_elements(g)
        return (self._table == 0).int().argmax(1).to(g.device)[g]


@dataclass(frozen=True, repr=False)
class ActionGroup(TableGroup):
    """The group of some callables. Made by ``FiniteGroup.from_actions``, which documents it."""

    actions: tuple[Action, ...]
    input_shape: tuple[int, ...] | None = None
    exact: bool = field(init=False, compare=False)
    _table: Tensor = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not self.actions:
            raise ValueError("A group has at least one element, the identity: got no actions. Write lambda x: x first.")
        probe, images = self._act_on_probe()
        object.__setattr__(self, "_table", self._find_table(probe, images))
        moved = images.flatten(1).abs().sort(dim=1).values
        object.__setattr__(self, "exact", torch.equal(moved, moved[:1].expand_as(moved)))

    def __repr__(self) -> str:
        names = (getattr(action, "__name__", repr(action)) for action in self.actions)
        return f"FiniteGroup.from_actions([{', '.join(names)}])"

    @property
    def order(self) -> int:  # type: ignore[override]  # derived, where the base class has an attribute
        """Number of actions."""
        return len(self.actions)

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Calls the element's action on a whole batch and checks what it returns."""
        try:
            y = self.actions[index](x)
        except Exception as error:
            raise RuntimeError(
                f"{self!r}: action {index} failed on inputs of shape {tuple(x.shape)}: {error}"
            ) from error
        moved: Tensor = checked(self, y, x, f": action {index}")
        return moved

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Moves the entries of a map and negates none; see ``Group.act_on_map``.

        Raises:
            ValueError: The actions do more than move and negate entries, so that they do not say how maps move.
        """
        self._check_action(g, m)
        if not self.exact:
            raise ValueError(
                f"{self!r} changes values, which does not say how it moves maps. Leave maps out with saliency=None, or "
                "write a subclass of FiniteGroup with act_on_map."
            )
        return self.act(g, m) * self.act(g, torch.ones_like(m))  # the signs that the action gives, cancelled

    def _act_on_probe(self) -> tuple[Tensor, Tensor]:
        """A probe that the actions take, shape ``(1, ...)``, and its images, shape ``(order, ...)``."""
        if self.input_shape is not None:
            return self._images(distinct_values(self.input_shape))
        for shape in probe_shapes((28, 3, len(self.actions))):
            try:
                return self._images(distinct_values(shape))
            except (RuntimeError, ValueError) as error:
                failure = error
        raise ValueError(
            f"{self!r}: no sample was found that all actions take. Give the shape of one, without the batch axis, "
            f"as input_shape. The last one tried gave: {failure}"
        ) from failure

    def _images(self, probe: Tensor) -> tuple[Tensor, Tensor]:
        given = probe.clone()
        images = torch.cat([self.transform(index, given) for index in range(self.order)])
        if not torch.equal(given, probe):
            raise ValueError(f"{self!r}: an action writes into its input, which it must leave as it is.")
        return probe, images

    def _find_table(self, probe: Tensor, images: Tensor) -> Tensor:
        """Recognises each product of two actions by where it takes the probe."""
        if (twice := _matches(images, images).triu(1).nonzero()).numel():
            i, j = twice[0].tolist()
            raise ValueError(f"{self!r}: each element must be listed once, but actions {i} and {j} do the same.")
        if not _matches(images[:1], probe).all():
            raise ValueError(f"{self!r}: the first action must be the identity: write lambda x: x there.")
        batch = distinct_values((3, *images.shape[1:]))[0]
        for index in range(self.order):
            alone = torch.cat([self.transform(index, row[None]) for row in batch])
            if not _matches(self.transform(index, batch), alone).diagonal().all():
                raise ValueError(f"{self!r}: action {index} mixes the samples of a batch; axis 0 must stay as it is.")
        rows = []
        for index in range(self.order):
            found = _matches(self.transform(index, images), images)
            if (unknown := (~found.any(1)).nonzero()).numel():
                raise ValueError(
                    f"{self!r} is not closed: action {index} after action {int(unknown[0])} is none of the "
                    f"{self.order} actions. List every product, or give generators to FiniteGroup.from_permutations."
                )
            rows.append(found.int().argmax(1))
        table = torch.stack(rows)
        if (irreversible := (~(table == 0).any(1)).nonzero()).numel():
            raise ValueError(f"{self!r}: no action in the list undoes action {int(irreversible[0])}.")
        return table


def _matches(a: Tensor, b: Tensor) -> Tensor:
    """Which rows of ``a`` equal which rows of ``b`` up to rounding; shape ``(len(a), len(b))``, bool."""
    limit = _ROUNDING * max(float(b.abs().max()), 1.0)
    return torch.stack([(row - b).abs().flatten(1).amax(1) <= limit for row in a])


@dataclass(frozen=True, repr=False)
class PermutationGroup(TableGroup, PositionGroup):
    """The group that some permutations generate. Made by ``FiniteGroup.from_permutations``, which documents it."""

    permutations: tuple[tuple[int, ...], ...]
    dim: int = -1
    max_order: int = field(default=1_000, compare=False)
    order: int = field(init=False, compare=False)
    _table: Tensor = field(init=False, compare=False)
    _sources: Tensor = field(init=False, compare=False)
    _generators: Tensor = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.dim == 0:
            raise ValueError("A permutation moves entries within a sample: got dim 0, the batch axis.")
        if self.max_order < 1:
            raise ValueError(f"A group has at least one element: got max_order={self.max_order}.")
        if not self.permutations:
            raise ValueError("A permutation group needs at least one generator: got none.")
        positions = range(len(self.permutations[0]))
        for index, generator in enumerate(self.permutations):
            if sorted(generator) != list(positions):
                raise ValueError(
                    f"Each generator must hold 0 to {len(positions) - 1}, each once, as the first one's length says: "
                    f"generator {index} has {len(generator)} entries and does not."
                )
        elements, times_generator = self._close(tuple(positions))
        object.__setattr__(self, "order", len(elements))
        object.__setattr__(self, "_sources", torch.tensor(elements).argsort(1))
        object.__setattr__(self, "_generators", torch.unique(times_generator[0]))
        object.__setattr__(self, "_table", multiplication_table(times_generator))

    def __repr__(self) -> str:
        size = len(self.permutations[0])
        shown = list(map(list, self.permutations)) if size <= 12 else f"{len(self.permutations)} of size {size}"
        return f"FiniteGroup.from_permutations({shown}, dim={self.dim})"

    def generators(self) -> Tensor:
        """The elements that the permutations given are, each once."""
        return self._generators[self._generators > 0]

    @property
    def dims(self) -> tuple[int, ...]:
        """The axis."""
        return (self.dim,)

    def sources(self, sizes: tuple[int, ...], device: torch.device) -> Tensor:
        """The inverse permutations; see ``PositionGroup.sources``."""
        if sizes != self._sources.shape[1:]:
            raise ValueError(
                f"{self!r} permutes {self._sources.shape[1]} positions along axis {self.dim}: got size {sizes[0]}. "
                "Say with dim= which axis it permutes."
            )
        return self._sources.to(device)

    def _name(self, g: Tensor) -> str:
        return in_cycles(self._sources[g].argsort().tolist())

    def _close(self, identity: tuple[int, ...]) -> tuple[list[tuple[int, ...]], Tensor]:
        """All products of the permutations, breadth first; the index of each one times each of those given."""
        elements, index_of = [identity], {identity: 0}
        times_generator: list[list[int]] = []
        while len(times_generator) < len(elements):
            element = elements[len(times_generator)]
            row = []
            for generator in self.permutations:
                product = tuple(element[i] for i in generator)
                if product not in index_of:
                    if len(elements) == self.max_order:
                        raise ValueError(
                            f"The {len(self.permutations)} generators make a group of more than max_order="
                            f"{self.max_order} elements. Raise max_order if that is meant; the multiplication table "
                            "grows with its square."
                        )
                    index_of[product] = len(elements)
                    elements.append(product)
                row.append(index_of[product])
            times_generator.append(row)
        return elements, torch.tensor(times_generator)


def multiplication_table(times_generator: Tensor) -> Tensor:
    """The multiplication table of elements whose products with generators are given, shape ``(order, generators)``.

    Column by column: if h = ps for a generator s, then gh = (gp)s. Element 0 is the identity; each other one is the
    product of an earlier one and a generator.
    """
    order = len(times_generator)
    table = torch.arange(order).repeat(order, 1).T.contiguous()  # the column of the identity, and room for others
    known = {0}
    for p in range(order):
        for s, h in enumerate(times_generator[p].tolist()):
            if h not in known:
                known.add(h)
                table[:, h] = times_generator[table[:, p], s]
    return table
