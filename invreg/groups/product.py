"""How do two groups act together?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf, prod

import torch
from torch import Tensor

from invreg.groups.contract import FiniteGroup, Group
from invreg.groups.keys import OnKeys
from invreg.groups.probe import distinct_values, probe_shapes, smooth_values

_LARGE_SIDE = 96
"""Of images for actions that interpolate."""

_MOST_NAMES = 100
"""How many names of a factor's elements are compared with those of the others."""

_ROUNDING = 1e-9
"""How far float64 rounding may move what exact actions give, relative to the norm of the sample."""


class _Product(Group):
    """Pairs of an element of ``first`` and one of ``second``, which acts by the second, then by the first."""

    first: Group
    second: Group
    _shapes_checked: set[tuple[int, ...]]

    @abstractmethod
    def _conjugate(self, h: Tensor, n: Tensor) -> Tensor:
        """The element of ``first`` that acts as ``h``, ``n`` and the inverse of ``h`` do, from last to first."""

    @abstractmethod
    def _no_relation(self, h: Tensor, n: Tensor, shape: Sequence[int] | str) -> str:
        """What is wrong where ``_conjugate`` does not say what these elements do."""

    @property
    def element_shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived, as those below
        """``(size,)``: the numbers of the first element, then those of the second."""
        return (prod(self.first.element_shape) + prod(self.second.element_shape),)

    @property
    def element_dtype(self) -> torch.dtype:  # type: ignore[override]
        """The dtype that holds both elements."""
        return torch.promote_types(self.first.element_dtype, self.second.element_dtype)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether both actions are exact."""
        return self.first.exact and self.second.exact

    @property
    def local(self) -> bool:  # type: ignore[override]
        """Whether one of the groups is local."""
        return self.first.local or self.second.local

    @property
    def order(self) -> float:  # type: ignore[override]
        """Number of pairs."""
        orders = (self.first.order, self.second.order)
        return inf if inf in orders else orders[0] * orders[1]  # n! may be too large to multiply by infinity

    @property
    def identity(self) -> Tensor:
        """The pair of both identities."""
        return self._join(self.first.identity, self.second.identity)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """Composes pairs, moving the first's part of ``h`` past the second's part of ``g``; see ``Group.compose``."""
        self._check_elements(g, h)
        (g1, g2), (h1, h2) = self._split(g), self._split(h)
        return self._join(self.first.compose(g1, self._conjugate(g2, h1)), self.second.compose(g2, h2))

    def inverse(self, g: Tensor) -> Tensor:
        """Inverts both parts, in the other order; see ``Group.inverse``."""
        self._check_elements(g)
        g1, g2 = self._split(g)
        g2 = self.second.inverse(g2)
        return self._join(self._conjugate(g2, self.first.inverse(g1)), g2)

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws both parts; see ``Group.sample``."""
        return self._join(self.first.sample(n, rng), self.second.sample(n, rng))

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """Acts by the second's part, then by the first's; see ``Transformations.act``."""
        self._check_action(g, x)
        self._check_relation(x)
        g1, g2 = self._split(g)
        return self.first.act(g1, self.second.act(g2, x))

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Lets the parts act on the map; see ``Group.act_on_map``."""
        self._check_action(g, m)
        g1, g2 = self._split(g)
        return self.first.act_on_map(g1, self.second.act_on_map(g2, m))

    def _name(self, g: Tensor) -> str:
        named = list(self._name_factors(g))
        moving = [name for group, name in named if name != group.describe(group.identity)]
        if 0 < len(moving) < len(named) and _share_names(group for group, _ in named):
            moving = [name for _, name in named]
        return " · ".join(moving) or "identity"

    def _name_factors(self, g: Tensor) -> Iterator[tuple[Group, str]]:
        """The factors, those of products among them one by one, and what they call their parts of ``g``."""
        for group, part in zip((self.first, self.second), self._split(g), strict=True):
            if isinstance(group, _Product):
                yield from group._name_factors(part)
            else:
                yield group, group.describe(part)

    def _split(self, g: Tensor) -> tuple[Tensor, Tensor]:
        size = prod(self.first.element_shape)
        first, second = g[..., :size], g[..., size:]
        return (
            first.to(self.first.element_dtype).reshape((*g.shape[:-1], *self.first.element_shape)),
            second.to(self.second.element_dtype).reshape((*g.shape[:-1], *self.second.element_shape)),
        )

    def _join(self, first: Tensor, second: Tensor) -> Tensor:
        dims = first.ndim - len(self.first.element_shape)
        parts = (
            (first.flatten(dims) if first.ndim > dims else first[..., None]),
            (second.flatten(dims) if second.ndim > dims else second[..., None]),
        )
        return torch.cat([part.to(self.element_dtype) for part in parts], -1)

    def _check_values(self, g: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        first, second = self._split(g)
        if not torch.equal(self._join(first, second), g):
            raise ValueError(f"Elements of {self!r} hold finite numbers, whole ones where its factors do: got others.")
        self.first._check_values(first)
        self.second._check_values(second)

    def _check_parts(self) -> None:
        """Raises unless both are groups that act together, as far as shows on samples of the usual shapes."""
        for h in _some_elements(self.second):
            for n in _some_elements(self.first):
                self.first._check_elements(self._conjugate(h, n))
        for shape in _probe_shapes(self):
            try:
                conflict = self._find_conflict(shape)
            except (ValueError, RuntimeError, IndexError):  # not a shape that these groups act on: try the next
                continue
            self._raise_if(conflict, shape)
            self._shapes_checked.add(shape)
            break

    def _check_relation(self, x: Tensor) -> None:
        """Checks on samples of this shape, once for each: an axis may be another one than on the probe.

        Actions that interpolate are tried on a larger image if they can be: what a small one loses would say little.
        """
        if not isinstance(x, Tensor) or torch.compiler.is_compiling():
            return
        shape = tuple(x.shape[1:])
        if shape in self._shapes_checked:
            return
        larger = (*shape[:-2], _LARGE_SIDE, _LARGE_SIDE)
        for tried in (shape,) if self.exact else (larger, shape):
            try:
                conflict = self._find_conflict(tried)
            except (ValueError, RuntimeError, IndexError):  # acting itself raises it, on the inputs that came
                continue
            self._raise_if(conflict, tried)
            self._shapes_checked.add(shape)
            return

    def _find_conflict(self, sample_shape: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """The first pair of elements for which ``_conjugate`` is wrong on a sample of this shape, if there is one."""
        x = _probe(self, sample_shape)
        for n in _some_elements(self.first):
            for h in _some_elements(self.second):
                there = self.second.act(h, self.first.act(n, x))
                back = self.first.act(self._conjugate(h, n), self.second.act(h, x))
                allowed = _ROUNDING
                if not self.exact:  # which may differ as far as the actions themselves fail to undo themselves
                    allowed = min(1e-6 + 4 * (_own_error(self.first, n, x) + _own_error(self.second, h, x)), 0.5)
                if (there - back).norm() > allowed * x.norm():
                    return n, h
        return None

    def _raise_if(self, conflict: tuple[Tensor, Tensor] | None, shape: Sequence[int]) -> None:
        if conflict is not None:
            n, h = conflict
            raise ValueError(self._no_relation(h, n, shape))


class _FiniteProduct(FiniteGroup, _Product):
    """What a product of two finite groups has more: the pair ``(i, j)`` is the element ``i * second.order + j``."""

    element_shape = ()
    element_dtype = torch.int64
    first: FiniteGroup
    second: FiniteGroup

    @property
    def order(self) -> int:  # type: ignore[override]  # derived, where the base class has an attribute
        """Number of pairs."""
        return self.first.order * self.second.order

    def generators(self) -> Tensor:
        """The generators of both groups, each paired with the other's identity."""
        return torch.cat([self.first.generators() * self.second.order, self.second.generators()])

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Applies one element to a whole batch: the second group's part, then the first's."""
        self._check_relation(x)
        i, j = divmod(index, self.second.order)
        return self.first.transform(i, self.second.transform(j, x))

    def transform_each(self, g: Tensor, x: Tensor) -> Tensor:
        """Applies one element to each sample: the second group's parts, then the first's."""
        self._check_relation(x)
        g1, g2 = self._split(g)
        return self.first.transform_each(g1, self.second.transform_each(g2, x))

    def orbit(self, x: Tensor, *, identity: bool = True) -> Tensor:
        """The batch under every element, as the first group's orbit of the second's; see ``FiniteGroup.orbit``."""
        self._check_relation(x)
        second = self.second.orbit(x)
        return self.first.orbit(second.flatten(0, 1)).view(self.order, *x.shape)[0 if identity else 1 :]

    def _split(self, g: Tensor) -> tuple[Tensor, Tensor]:
        return g // self.second.order, g % self.second.order

    def _join(self, first: Tensor, second: Tensor) -> Tensor:
        return first * self.second.order + second


@dataclass(frozen=True, repr=False)
class DirectProduct(_Product):
    """All pairs of an element of one group and one of another, whose actions commute. Written ``first * second``.

    Of two finite groups it is a ``FiniteGroup``: the pair ``(i, j)`` is the element ``i * second.order + j``. Otherwise
    an element is a vector of the numbers of both parts. Either acts by the second's part, then by the first's.

    Args:
        first: A group.
        second: A group whose action commutes with that of ``first``.

    Raises:
        TypeError: One of the two is no group.
        ValueError: The actions do not commute. Found when the product is made or, where that depends on the inputs'
            shape, when it first acts on such inputs. Between actions that interpolate only what shows beside their own
            error is found; ``invreg.testing.check_group`` looks closer.

    Example:
        >>> from invreg import Flip, SignFlip, SpatialRotation, SymmetricGroup
        >>> group = Flip(-1) * SignFlip()
        >>> group.order
        4
        >>> group.act(torch.tensor(3), torch.tensor([[1.0, 2.0]]))
        tensor([[-2., -1.]])
        >>> (SymmetricGroup(5, dim=1) * SpatialRotation()).element_shape  # turned and reordered clouds of 5 points
        (14,)
    """

    first: Group
    second: Group
    _shapes_checked: set[tuple[int, ...]] = field(default_factory=set, init=False, compare=False)

    def __post_init__(self) -> None:
        _check_groups(self.first, self.second)
        if _are_finite(self.first, self.second) and type(self) is DirectProduct:
            object.__setattr__(self, "__class__", _FiniteDirectProduct)
        self._check_parts()

    def __repr__(self) -> str:
        second = f"({self.second!r})" if isinstance(self.second, DirectProduct) else repr(self.second)
        return f"{self.first!r} * {second}"

    def _conjugate(self, h: Tensor, n: Tensor) -> Tensor:
        return n

    def _no_relation(self, h: Tensor, n: Tensor, shape: Sequence[int] | str) -> str:
        return (
            f"{self!r} is no direct product, whose two actions must commute: {_named(self.first, n)} of the first and "
            f"{_named(self.second, h)} of the second do not, on samples of {_in_words(shape)}. Rotations and "
            "mirrors together are Dihedral; if the second takes the first's elements to one another, take "
            "SemidirectProduct; for other pairs list the actions in FiniteGroup.from_actions."
        )


class _FiniteDirectProduct(_FiniteProduct, DirectProduct):
    """A direct product that is finite."""


Conjugation = Callable[[Tensor, Tensor], Tensor]
"""Takes elements ``h`` of the second group and ``n`` of the first, stacks of them, to ``h n h⁻¹``, in the first."""


@dataclass(frozen=True, repr=False)
class SemidirectProduct(_Product):
    """All pairs of elements of two groups of which the second takes elements of the first to one another.

    Such are rotations and mirrors (which make ``Dihedral``), or translations and ``Dihedral(4)`` (the wallpaper group
    p4m): to turn, then shift along one axis is to shift along another, then turn. A pair acts by the second's part,
    then by the first's; ``(n, h)(n', h') = (n h n' h⁻¹, h h')``.

    Of two finite groups it is a ``FiniteGroup``: the pair ``(i, j)`` is the element ``i * second.order + j``. Otherwise
    an element is a vector of the numbers of both parts.

    Args:
        first: The group whose elements are taken to one another (the normal subgroup).
        second: The group that takes them.
        conjugate: Which element of ``first`` acts as ``h n h⁻¹`` does; takes ``(h, n)``, stacks of elements, to
            elements of ``first``. None finds it out by trying, for finite groups.
        input_shape: Shape of one sample to try finite groups on. None tries a few.

    Raises:
        TypeError: One of the two is no group, or ``conjugate`` is missing for groups that are not finite.
        ValueError: ``h n h⁻¹`` is not in ``first`` or not what ``conjugate`` says, or no sample was found to try on.

    Example:
        >>> from invreg import CyclicRotation, CyclicTranslation, Dihedral, Flip
        >>> SemidirectProduct(CyclicRotation(4), Flip()).order
        8
        >>> p4m = SemidirectProduct(CyclicTranslation(3, -1) * CyclicTranslation(3, -2), Dihedral(4))
        >>> p4m.order
        72

        Rigid motions of images: turns counter-clockwise, shifts ``(down, right)``. Since ``Translation`` wraps around
        and ``PlanarRotation`` does not, they are a group for content that stays clear of the edges.

        >>> from invreg import PlanarRotation, Translation
        >>> def turned_shift(h, n):
        ...     (cosine, sine), (down, right) = (h[..., 0].cos(), h[..., 0].sin()), n.unbind(-1)
        ...     return torch.stack([cosine * down - sine * right, sine * down + cosine * right], -1)
        >>> SemidirectProduct(Translation(3.0), PlanarRotation(), turned_shift).element_shape
        (3,)
    """

    first: Group
    second: Group
    conjugate: Conjugation | None = None
    input_shape: tuple[int, ...] | None = None
    _shapes_checked: set[tuple[int, ...]] = field(default_factory=set, init=False, compare=False)
    _table: Tensor | None = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        if _are_finite(self.first, self.second) and type(self) is SemidirectProduct:
            object.__setattr__(self, "__class__", _FiniteSemidirectProduct)
        if self.input_shape is not None:
            object.__setattr__(self, "input_shape", tuple(self.input_shape))
        _check_groups(self.first, self.second)
        if not (callable(self.conjugate) or (self.conjugate is None and isinstance(self, FiniteGroup))):
            raise TypeError(
                "A semidirect product needs conjugate, a callable (h, n) -> h n h⁻¹, or None if both groups are "
                f"finite: got {self.conjugate!r}."
            )
        if isinstance(self.first, FiniteGroup) and isinstance(self.second, FiniteGroup):
            table = self._find_table()
            if self.conjugate is not None:
                given = self.conjugate(self.second.elements()[:, None], self.first.elements()).expand_as(table)
                if not torch.equal(given, table):
                    h, n = (given != table).nonzero()[0]
                    raise ValueError(self._no_relation(h, n, self.input_shape or "the usual shape"))
            object.__setattr__(self, "_table", table)
        self._check_parts()

    def __repr__(self) -> str:
        conjugate = f", conjugate={getattr(self.conjugate, '__name__', self.conjugate)}" if self.conjugate else ""
        shape = f", input_shape={self.input_shape}" if self.input_shape else ""
        return f"SemidirectProduct({self.first!r}, {self.second!r}{conjugate}{shape})"

    def _conjugate(self, h: Tensor, n: Tensor) -> Tensor:
        if self._table is not None:
            return self._table.to(n.device)[h, n]
        assert self.conjugate is not None
        return self.conjugate(h, n)

    def _no_relation(self, h: Tensor, n: Tensor, shape: Sequence[int] | str) -> str:
        return (
            f"{self!r} is no semidirect product: for {_named(self.first, n)} of the first, n, and "
            f"{_named(self.second, h)} of the second, h, on samples of {_in_words(shape)}, h n h⁻¹ acts as "
            "another element of the first than conjugate says."
        )

    def _find_table(self) -> Tensor:
        """Recognises each ``h n h⁻¹`` among the elements of the first group by what it does to a sample."""
        for shape in _probe_shapes(self) if self.input_shape is None else [self.input_shape]:
            try:
                return self._table_on(_probe(self, shape))
            except (RuntimeError, IndexError, ValueError) as error:
                if self.input_shape is not None or isinstance(error, _NotNormalError):
                    raise
        raise ValueError(
            f"{self!r}: no sample was found that both groups act on. Give the shape of one, without the batch axis, as "
            "input_shape."
        )

    def _table_on(self, x: Tensor) -> Tensor:
        assert isinstance(self.first, FiniteGroup)
        assert isinstance(self.second, FiniteGroup)
        images = self.first.orbit(x).flatten(1)
        apart = torch.cdist(images, images).fill_diagonal_(torch.inf).amin(1)
        if self.first.order > 1 and float(apart.min()) <= _ROUNDING * float(x.norm()):
            raise ValueError(
                f"{self!r}: two elements of the first group do the same to samples of shape {tuple(x.shape[1:])}. Give "
                "a shape on which all differ as input_shape."
            )
        rows = []
        for h in self.second.elements():
            conjugated = self.second.act(h, self.first.orbit(self.second.act(self.second.inverse(h), x)).flatten(0, 1))
            distances, found = torch.cdist(conjugated.flatten(1), images).min(1)
            # What interpolates lies near where it should, nearer than half-way to the next image.
            limit = torch.full_like(distances, _ROUNDING * float(x.norm())) if self.exact else apart[found] / 2
            unknown = distances > limit.clamp_max(float(x.norm()))
            if bool(unknown.any()):
                n = unknown.nonzero()[0, 0]
                raise _NotNormalError(
                    f"{self!r} is no semidirect product: with element {int(n)} of the first, n, and element {int(h)} "
                    f"of the second, h, what h n h⁻¹ does to samples of shape {tuple(x.shape[1:])} no element of the "
                    "first does. Is it the first group that the second one takes to itself?"
                )
            rows.append(found)
        return torch.stack(rows)


class _FiniteSemidirectProduct(_FiniteProduct, SemidirectProduct):
    """A semidirect product that is finite."""


class _NotNormalError(ValueError):
    """The second group takes the first out of itself."""


def _check_groups(*groups: object) -> None:
    for group in groups:
        if not isinstance(group, Group) or isinstance(group, OnKeys):
            raise TypeError(
                f"A product is made of two groups: got {group!r}. For several tensors, make the product first and give "
                "it to OnKeys."
            )


def _probe_shapes(group: _Product) -> Iterator[tuple[int, ...]]:
    """Shapes of samples to try the factors on."""
    sizes = [
        size
        for part in (group.first, group.second)
        for size in ((part.order,) if isinstance(part, FiniteGroup) else part.element_shape)
    ]
    return probe_shapes(sizes) if group.exact else probe_shapes(sizes, side=_LARGE_SIDE)


def _are_finite(*groups: object) -> bool:
    return all(isinstance(group, FiniteGroup) for group in groups)


def _some_elements(group: Group) -> Iterator[Tensor]:
    """Elements that generate a finite group; a few of another one."""
    yield from (
        group.generators() if isinstance(group, FiniteGroup) else group.sample(3, torch.Generator().manual_seed(0))
    )


def _share_names(groups: Iterable[Group]) -> bool:
    """Whether two of the groups have elements of the same name, as far as is looked; identities do not count."""
    names: list[str] = []
    for group in groups:
        some = group.non_identity_elements() if isinstance(group, FiniteGroup) else _some_elements(group)
        names += {group.describe(g) for g in islice(some, _MOST_NAMES)}
    return len(set(names)) < len(names)


def _probe(group: Group, sample_shape: Sequence[int]) -> Tensor:
    return distinct_values(sample_shape) if group.exact else smooth_values(sample_shape)


def _own_error(group: Group, g: Tensor, x: Tensor) -> float:
    """How far the action is from undoing itself, relative to the norm of ``x``."""
    return float((group.act(group.inverse(g), group.act(g, x)) - x).norm() / x.norm())


def _in_words(shape: Sequence[int] | str) -> str:
    return shape if isinstance(shape, str) else f"shape {tuple(shape)}"


def _named(group: Group, g: Tensor) -> str:
    return f"element {g.tolist()}" if g.numel() <= 9 else "an element"
