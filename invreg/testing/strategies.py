"""Which elements, inputs and groups try the corners?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import pi
from typing import Any, Literal

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from invreg.groups import (
    Conjugated,
    CyclicPermutation,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    DirectProduct,
    FiniteGroup,
    Flip,
    Group,
    PlanarRotation,
    Restricted,
    Scaling,
    SemidirectProduct,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    Translation,
    Trivial,
)
from invreg.groups.probe import distinct_values

Shape = tuple[int, ...]

_WIDTH: dict[torch.dtype, Literal[16, 32, 64]] = {
    torch.float64: 64,
    torch.float32: 32,
    torch.float16: 16,
    torch.bfloat16: 32,
}
"""How many bits entries are drawn with, by numpy, which knows no bfloat16."""

_SEEDS = st.integers(0, 2**16)

SHORT = 4
"""Axes up to this size, such as channels or coordinates, hold any values; inputs are smooth along longer ones."""

_WINDOW = 0.12
"""Width (standard deviation) of the window of smooth inputs, relative to the axis."""

_LARGEST_ORDER = 64
"""Of the groups that ``finite_groups`` composes, so that a test may try all elements."""


def elements(group: Group) -> SearchStrategy[Tensor]:
    """Draws elements of a group; shrinks to the identity.

    Args:
        group: The group. The elements of one that is not finite are those that its ``sample`` draws, numbered by the
            seed, and shrink to small seeds. Those of invreg's own groups shrink further: to permutations that move
            little, to quarter turns, to shifts by one pixel.

    Returns:
        A strategy of tensors of shape ``group.element_shape``.

    Raises:
        TypeError: ``group`` is no ``Group``.

    Example:
        >>> from hypothesis import find
        >>> from invreg import CyclicRotation
        >>> find(elements(CyclicRotation(4)), lambda g: g > 1)
        tensor(2)
    """
    if not isinstance(group, Group):
        raise TypeError(f"elements draws from a Group, e.g. CyclicRotation(4): got {_kind(group)}.")
    if isinstance(group, FiniteGroup):
        return st.integers(0, group.order - 1).map(torch.tensor)
    if isinstance(group, (DirectProduct, SemidirectProduct)):
        return st.tuples(elements(group.first), elements(group.second)).map(lambda parts: group._join(*parts))
    if isinstance(group, SymmetricGroup):
        return st.permutations(range(group.n)).map(torch.tensor)
    drawn = _SEEDS.map(partial(_numbered, group))
    corners = [torch.tensor(corner, dtype=group.element_dtype) for corner in _corners(group)]
    return st.just(group.identity) | st.sampled_from(corners) | drawn if corners else drawn


def element_pairs(group: Group) -> SearchStrategy[tuple[Tensor, Tensor]]:
    """Draws two elements of a group; shrinks to the identity twice.

    Args:
        group: As in ``elements``.

    Returns:
        A strategy of pairs of elements.

    Raises:
        TypeError: ``group`` is no ``Group``.

    Example:
        >>> from hypothesis import find
        >>> from invreg import Dihedral
        >>> group = Dihedral(4)
        >>> find(element_pairs(group), lambda pair: not torch.equal(group.compose(*pair), group.compose(*pair[::-1])))
        (tensor(1), tensor(4))
    """
    return st.tuples(elements(group), elements(group))


def element_stacks(group: Group, n: int) -> SearchStrategy[Tensor]:
    """Draws one element for each of ``n`` samples; shrinks to the identity for each.

    Args:
        group: As in ``elements``.
        n: Number of samples, at least 1.

    Returns:
        A strategy of tensors of shape ``(n, *group.element_shape)``.

    Raises:
        TypeError: ``group`` is no ``Group`` or ``n`` no whole number.
        ValueError: ``n`` is below 1.

    Example:
        >>> from hypothesis import find
        >>> from invreg import CyclicRotation
        >>> find(element_stacks(CyclicRotation(4), 3), lambda g: g.sum() > 1)
        tensor([0, 0, 2])
    """
    if not isinstance(n, int):
        raise TypeError(f"n, the number of samples, must be a whole number: got {_kind(n)}.")
    if n < 1:
        raise ValueError(f"n, the number of samples, must be at least 1: got {n}.")
    return st.lists(elements(group), min_size=n, max_size=n).map(torch.stack)


def image_shapes(
    *, max_samples: int = 4, max_channels: int = 3, max_side: int = 8, square: bool = False
) -> SearchStrategy[Shape]:
    """Draws shapes of batches of images; favours one sample, one channel and one pixel; shrinks to those.

    Args:
        max_samples: Most images in a batch.
        max_channels: Most channels.
        max_side: Largest height and width; even and odd ones occur.
        square: Whether height and width must be equal, as quarter turns need it.

    Returns:
        A strategy of tuples ``(N, C, H, W)``.

    Raises:
        ValueError: A size is below 1.

    Example:
        >>> from hypothesis import find
        >>> find(image_shapes(), lambda shape: shape[2] != shape[3])
        (1, 1, 1, 2)
    """
    for name, size in {"max_samples": max_samples, "max_channels": max_channels, "max_side": max_side}.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1: got {size!r}.")
    sides = _sizes(max_side)
    images = sides.map(lambda side: (side, side)) if square else st.tuples(sides, sides)
    return st.tuples(_sizes(max_samples), _sizes(max_channels), images).map(lambda drawn: (*drawn[:2], *drawn[2]))


def inputs(
    shape: Sequence[int] | SearchStrategy[Shape],
    *,
    dtype: torch.dtype = torch.float64,
    elements: SearchStrategy[float] | None = None,
) -> SearchStrategy[Tensor]:
    """Draws batches that favour the corners: zeros, ties, all entries different, huge and tiny values.

    All entries are finite. Shrinks to zeros, then to a single one among them, then to another single value, where that
    is enough.

    Args:
        shape: Shape of the whole batch, ``(N, ...)``, or a strategy of such shapes, e.g. ``image_shapes()``.
        dtype: Floating-point dtype.
        elements: A strategy of entries, as in ``hypothesis.extra.numpy.arrays``. None favours the corners.

    Returns:
        A strategy of tensors of that shape and dtype.

    Raises:
        TypeError: ``shape`` is no shape, ``dtype`` no floating-point dtype or ``elements`` no strategy.
        ValueError: A size is negative, or there is no batch axis.

    Example:
        >>> from hypothesis import find
        >>> find(inputs((2, 3)), lambda x: x.any())
        tensor([[1., 0., 0.],
                [0., 0., 0.]], dtype=torch.float64)
    """
    if dtype not in _WIDTH:
        raise TypeError(
            f"inputs draws floating-point batches, of one of {', '.join(map(str, _WIDTH))}: got {dtype!r}. "
            "Convert them where you need another dtype: inputs(...).map(lambda x: x.long())."
        )
    if elements is not None and not isinstance(elements, SearchStrategy):
        raise TypeError(f"elements must be a strategy, e.g. hypothesis.strategies.floats(0, 1): got {_kind(elements)}.")
    if isinstance(shape, SearchStrategy):
        return shape.flatmap(lambda drawn: _batches(_checked_shape(drawn), dtype, elements))
    return _batches(_checked_shape(shape), dtype, elements)


def smooth_inputs(
    shape: Sequence[int] | SearchStrategy[Shape], *, dtype: torch.dtype = torch.float64
) -> SearchStrategy[Tensor]:
    """Draws batches on which interpolation is accurate: slow waves in the middle, nothing at the borders.

    Along each axis longer than 4, a sample is a sum of two modes, a bump and that bump times a slow sine, which
    vanish towards both ends; shorter axes, such as channels, hold any values. Shrinks to zeros, then to a single mode.

    Args:
        shape: Shape of the whole batch, ``(N, ...)``, or a strategy of such shapes.
        dtype: Floating-point dtype.

    Returns:
        A strategy of tensors of that shape and dtype.

    Raises:
        TypeError: ``shape`` is no shape or ``dtype`` no floating-point dtype.
        ValueError: A size is negative, or there is no batch axis.

    Example:
        >>> from hypothesis import find
        >>> find(smooth_inputs((1, 9)), lambda x: x.sum() > 0).max()
        tensor(1., dtype=torch.float64)
    """
    if dtype not in _WIDTH:
        raise TypeError(f"smooth_inputs draws one of {', '.join(map(str, _WIDTH))}: got {dtype!r}.")
    if isinstance(shape, SearchStrategy):
        return shape.flatmap(lambda drawn: _smooth_batches(_checked_shape(drawn), dtype))
    return _smooth_batches(_checked_shape(shape), dtype)


def finite_groups(input_shape: Sequence[int] = (2, 4, 4)) -> SearchStrategy[FiniteGroup]:
    """Draws finite groups, composed ones included; shrinks to the trivial group.

    Args:
        input_shape: Shape of one sample, without the batch axis, on which each group that is drawn can act.

    Returns:
        A strategy of groups of at most 64 elements.

    Raises:
        TypeError: ``input_shape`` is no shape.
        ValueError: A size is below 1, or there is no axis.

    Example:
        >>> from hypothesis import find
        >>> find(finite_groups((3, 4)), lambda group: group.order == 2)
        SignFlip()
    """
    shape = _checked_shape(input_shape)
    if min(shape) < 1:
        raise ValueError(f"finite_groups needs samples with entries: got input_shape {shape}.")
    return st.recursive(_simple_groups(shape), partial(_composed_groups, shape), max_leaves=3)


def smooth_probe(sample_shape: Shape) -> Tensor:
    """One batch of those that ``smooth_inputs`` draws, of one sample and with all of its modes; float64."""
    modes = (1, *(size if size <= SHORT else 2 for size in sample_shape))
    return _waves(distinct_values(modes[1:]), (1, *sample_shape))


# ---------------------------------------------------------------------------------------------------------- elements


def _corners(group: Group) -> list[list[Any]]:
    """Elements of invreg's continuous groups that are simple, or at the end of a range."""
    if isinstance(group, PlanarRotation):
        return [[pi / 2], [-pi], [-pi / 2], [pi / 4], [1e-3]]
    if isinstance(group, SpatialRotation):
        return [
            [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
            [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
            [[-1, 0, 0], [0, 1, 0], [0, 0, -1]],
        ]
    if isinstance(group, Translation):
        return [[0, 1], [1, 0], [0, 0.5], [-group.max_shift, group.max_shift]]
    if isinstance(group, Scaling):
        return [[group.max_factor], [1 / group.max_factor]]
    return []


def _numbered(group: Group, seed: int) -> Tensor:
    """The identity for seed 0; else what the group draws from this seed."""
    return group.sample(1, torch.Generator().manual_seed(seed))[0] if seed else group.identity


# ------------------------------------------------------------------------------------------------------------ inputs


def _kind(thing: object) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__


def _sizes(largest: int) -> SearchStrategy[int]:
    return st.just(1) | st.integers(1, largest)


def _checked_shape(shape: object) -> Shape:
    if not isinstance(shape, Sequence) or not all(isinstance(size, int) for size in shape):
        raise TypeError(f"A shape is a tuple of whole numbers, e.g. (2, 3, 8, 8): got {shape!r}.")
    if not shape or min(shape) < 0:
        raise ValueError(f"A shape has at least one axis and no negative sizes: got {tuple(shape)}.")
    return tuple(shape)


def _batches(shape: Shape, dtype: torch.dtype, entries: SearchStrategy[float] | None) -> SearchStrategy[Tensor]:
    numbers = {64: np.float64, 32: np.float32, 16: np.float16}[_WIDTH[dtype]]

    def tensor(array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=dtype)

    if entries is not None:
        return arrays(numbers, shape, elements=entries).map(tensor)
    limit = torch.finfo(dtype).max
    any_entry = st.floats(-limit, limit, width=_WIDTH[dtype])
    tiny = torch.finfo(dtype).smallest_normal
    values = (0.0, 1.0, -1.0, 0.5, min(2.0**24, limit), 2.0, limit, -limit, tiny, -0.0)
    positions = st.integers(0, max(0, torch.Size(shape).numel() - 1))
    one = st.tuples(positions, st.sampled_from(values)).map(
        lambda drawn: _one_entry(shape, 1 + drawn[0], drawn[1]).to(dtype)
    )
    few = arrays(numbers, shape, elements=any_entry, fill=st.just(0.0))
    ties = arrays(numbers, shape, elements=st.sampled_from([1.0, -1.0, 0.0]), fill=st.just(1.0))
    ties = st.tuples(st.integers(0, 1), st.integers(1, 2), ties).map(lambda drawn: drawn[-1])
    scales = st.sampled_from(["one", "tiny", "huge"])
    patterns = st.tuples(st.sampled_from([_all_different, _normal]), _SEEDS, scales)
    dense = patterns.map(lambda drawn: _dense(shape, *drawn, dtype))
    # So that they can shrink to one entry, ties begin with whole numbers as that does; what is dense draws nothing
    # else, and its first seeds give what the first values there are.
    return one | few.map(tensor) | ties.map(tensor) | dense


def _one_entry(shape: Shape, number: int, value: float = 1.0) -> Tensor:
    """Zeros, for number 0, or a single other value among them."""
    x = torch.zeros(shape, dtype=torch.float64)
    if number and x.numel():
        x.view(-1)[number - 1] = value
    return x


def _all_different(shape: Shape, seed: int) -> Tensor:
    """The numbers 1, 2, 3, ... in some order, half of them negative."""
    size = torch.Size(shape).numel()
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)) + 1
    return (order * (1 - 2 * (order % 2))).double().view(shape)


def _normal(shape: Shape, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _dense(shape: Shape, pattern: Callable[[Shape, int], Tensor], seed: int, scale: str, dtype: torch.dtype) -> Tensor:
    """The same pattern around 1, around the smallest normal number, or up to the largest; plainer for small seeds."""
    x = pattern(shape, seed)
    if seed < 3:
        x = (torch.zeros_like(x), x.abs().ceil(), -x.abs().ceil())[seed]
    if seed < 3 or (seed == 3 and scale == "huge"):
        scale = "one"
    largest = float(x.abs().max()) if x.numel() else 1.0
    info = torch.finfo(dtype)
    by, times = {"one": (1.0, 1.0), "tiny": (1.0, info.smallest_normal), "huge": (largest, info.max)}[scale]
    return (x / by * times).to(dtype)  # in this order, so that the largest entry does not round to infinity


def _smooth_batches(shape: Shape, dtype: torch.dtype) -> SearchStrategy[Tensor]:
    modes = (shape[0], *(size if size <= SHORT else 2 for size in shape[1:]))
    one = st.integers(0, torch.Size(modes).numel()).map(partial(_one_entry, modes))
    few = arrays(np.int64, modes, elements=st.integers(-3, 3), fill=st.just(0)).map(torch.tensor)
    many = _SEEDS.map(lambda seed: torch.randint(-3, 4, modes, generator=torch.Generator().manual_seed(seed)))
    return (one | few | many).map(lambda coefficients: _waves(coefficients.double(), shape).to(dtype))


def _waves(coefficients: Tensor, shape: Shape) -> Tensor:
    """The sum of modes with these coefficients, one axis after another."""
    x = coefficients
    for size in shape[1:]:  # each step takes the first axis after the batch and puts it back at the end
        x = torch.tensordot(x, _modes(size), dims=([1], [0]))
    return x


def _modes(size: int) -> Tensor:
    """What spans the values along an axis of this size, one row each."""
    if size <= SHORT:
        return torch.eye(size, dtype=torch.float64)
    u = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / size
    bump = torch.exp(-((u / _WINDOW) ** 2) / 2)
    return torch.stack([bump, bump * torch.sin(2 * pi * u)])


# ------------------------------------------------------------------------------------------------------------ groups


def _simple_groups(shape: Shape) -> SearchStrategy[FiniteGroup]:
    """Groups that act on samples of this shape and are not composed of others."""
    groups: list[FiniteGroup] = [Trivial(), SignFlip()]
    for dim, size in enumerate(shape, start=1):
        groups.append(Flip(dim))
        groups += [CyclicTranslation(order, dim) for order in range(2, min(size, 12) + 1) if size % order == 0]
        groups += [CyclicPermutation(size, dim)] if 1 < size <= 12 else []
    if len(shape) > 1:
        for rotations in (1, 2, 4) if shape[-1] == shape[-2] else (1, 2):
            groups += [CyclicRotation(rotations), Dihedral(rotations)]
    drawn: SearchStrategy[FiniteGroup] = st.sampled_from(groups)
    if axes := [(dim, size) for dim, size in enumerate(shape, start=1) if 1 < size <= 4]:
        drawn |= st.sampled_from(axes).flatmap(lambda axis: _permutation_groups(*axis))
    return drawn


def _permutation_groups(dim: int, size: int) -> SearchStrategy[FiniteGroup]:
    generators = st.lists(st.permutations(range(size)), min_size=1, max_size=2)
    return generators.map(lambda drawn: FiniteGroup.from_permutations(drawn, dim=dim))


def _composed_groups(shape: Shape, groups: SearchStrategy[FiniteGroup]) -> SearchStrategy[FiniteGroup]:
    pairs = st.tuples(groups, groups)
    members = groups.flatmap(lambda group: st.tuples(st.just(group), st.integers(0, group.order - 1)))
    return (
        pairs.map(lambda pair: _product(*pair, shape, DirectProduct))
        | pairs.map(lambda pair: _product(*pair, shape, partial(SemidirectProduct, input_shape=shape)))
        | members.map(lambda member: Restricted(member[0], [member[1]]))
        | groups.map(_conjugated)
    )


def _product(
    first: FiniteGroup, second: FiniteGroup, shape: Shape, make: Callable[[FiniteGroup, FiniteGroup], Group]
) -> FiniteGroup:
    """The product, where there is one on samples of this shape and it is not too large; else the first of the two."""
    if first.order * second.order > _LARGEST_ORDER:
        return first
    try:
        product = make(first, second)
        product.act(product.identity, distinct_values(shape))
    except ValueError:
        return first
    return product if isinstance(product, FiniteGroup) else first


def _conjugated(group: FiniteGroup) -> FiniteGroup:
    """The group behind a shift of the last axis."""
    conjugated = Conjugated(group, _roll, _roll_back, exact=True)
    return conjugated if isinstance(conjugated, FiniteGroup) else group


def _roll(x: Tensor) -> Tensor:
    return x.roll(1, -1)


def _roll_back(x: Tensor) -> Tensor:
    return x.roll(-1, -1)
