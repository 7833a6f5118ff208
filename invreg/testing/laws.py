"""What must hold for a group that acts on batches?

A law is a function that raises ``Violation`` where it is broken. The names of its parameters say what it needs: ``f``,
``g`` and ``h`` are elements, ``x`` is a batch and ``each`` holds one element for each of its samples; ``probe`` is a
batch of one sample that is not zero; ``tolerance`` bounds how far an action that interpolates may be off. The first
line of its docstring is the law. ``LAWS`` lists those that others build upon first, so that the first one broken is the
one to repair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import inf

import torch
from torch import Tensor

from invreg.groups import FiniteGroup, Group
from invreg.testing.strategies import SHORT

ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""How far the rounding of each dtype may move a result, relative to the largest entry of the sample."""

_IDENTITY = 1e-4
"""How far the identity of an action that interpolates may move a sample, relative to it; wider where rounding is."""

_RINGING = 0.5
"""How negative a map may become, relative to its largest entry, by a group that interpolates with waves."""

_IF_INTERPOLATED = "If interpolation explains it, pass a larger tolerance or a larger, smoother example_input"

_WHOLE = 1e6
"""Errors of this many times the norm are not told as its multiples."""

_SIGNIFICANT = 5.0
"""Standard deviations beyond which counts are not those of equally likely elements (p = 3e-7)."""

_COUNTED = 5_000
"""Up to how many elements that are no indices are counted."""

_KOLMOGOROV = 2.69
"""Where the Kolmogorov-Smirnov distance, times the root of n/2, has p = 1e-6."""


class Violation(AssertionError):  # noqa: N818  # users see LawError, which says more
    """What a law raises where it is broken."""


# ------------------------------------------------------------------------------------ what composing builds upon


def sampling(group: Group) -> None:
    """Draws have the shape and dtype of elements, follow rng and leave the identity out where asked to.

    Args:
        group: The group.
    """
    draws = group.sample(64, _seeded(1))
    _require_elements(group, draws, (64,), "sample(64, rng)")
    if not torch.equal(group.sample(64, _seeded(1)), draws):
        raise Violation("two generators with the same seed give different draws")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    group.sample(64, _seeded(1))
    if not torch.equal(torch.get_rng_state(), before):
        raise Violation("sample draws from torch's global generator although it is given another one")
    from_global = group.sample(64)
    torch.manual_seed(1)
    if not torch.equal(group.sample(64), from_global):
        raise Violation("without rng, draws do not follow torch's global generator")
    if group.order == 1:
        return
    countable = not group.element_dtype.is_floating_point
    unknown = countable and group.order == inf  # there may be few elements, or the identity alone
    if unknown and (draws == torch.as_tensor(group.identity)).all():
        return
    if torch.equal(group.sample(64, _seeded(2)), draws):
        raise Violation("generators with different seeds give the same 64 draws")
    torch.manual_seed(2)
    if torch.equal(group.sample(64), from_global):
        raise Violation("without rng, draws do not follow torch's global generator")
    k = int(min(group.order - 1, 3))
    while True:
        try:
            others = group.sample_non_identity(64, k, _seeded(1))
            break
        except ValueError:
            if not unknown or k == 1:
                raise
            k -= 1
    _require_elements(group, others, (k, 64), f"sample_non_identity(64, {k}, rng)")
    flat = others.reshape(k, 64, -1)
    if (flat == torch.as_tensor(group.identity).reshape(-1)).all(2).any():
        raise Violation("sample_non_identity draws the identity")
    if countable and any((flat[i] == flat[j]).all(1).any() for i in range(k) for j in range(i)):
        raise Violation("sample_non_identity draws an element twice for one sample")


def form(group: Group, g: Tensor, each: Tensor, x: Tensor) -> None:
    """g·x has the shape, dtype and device of x, and is finite where x is; the identity is an element.

    Args:
        group: The group.
        g: An element.
        each: One element per sample.
        x: A batch.
    """
    _require_elements(group, group.identity, (), "identity")
    for element, how in _ways(g, each):
        y = group.act(element, x)
        if not isinstance(y, Tensor):
            raise Violation(f"{how}, act returns {type(y).__name__}, no tensor")
        if y.shape != x.shape:
            raise Violation(f"{how}, act returns shape {tuple(y.shape)} for shape {tuple(x.shape)}")
        if y.dtype != x.dtype:
            raise Violation(f"{how}, act returns {y.dtype} for {x.dtype}")
        if y.device != x.device:
            raise Violation(f"{how}, act returns a tensor on {y.device} for one on {x.device}")
        if not y.isfinite().all():
            raise Violation(f"{how}, act makes NaN or infinity of finite numbers")
    for device in ("meta", "cuda") if torch.cuda.is_available() else ("meta",):
        try:
            y = group.act(g, x.to(device))
        except Exception:
            if device == "meta":  # which stands for any other device, but cannot run what reads values
                continue
            raise
        if y.device.type != device:
            raise Violation(f"act makes its result on {y.device} wherever x is, here on the {device} device")


def unwritten(group: Group, g: Tensor, each: Tensor, x: Tensor) -> None:
    """The input is not written to.

    Args:
        group: The group.
        g: An element.
        each: One element per sample.
        x: A batch.
    """
    for act in (group.act, group.act_on_map):
        for element, how in _ways(g, each):
            given, given_element = x.clone(), element.clone()
            try:
                act(given_element, given)
            except (ValueError, NotImplementedError):
                if act == group.act:
                    raise
                continue  # a group may not know how maps move
            if given._version or not _same_bits(given, x):  # the version also tells what was written back
                raise Violation(f"{how}, {act.__name__} writes into its input")
            if not _same_bits(given_element, element):
                raise Violation(f"{how}, {act.__name__} writes into the elements")


def determinism(group: Group, g: Tensor, h: Tensor, each: Tensor, x: Tensor) -> None:
    """The same element does the same to the same input, each time.

    Args:
        group: The group.
        g: An element.
        h: An element.
        each: One element per sample.
        x: A batch.
    """
    for element, how in _ways(g, each):
        if not _same_bits(group.act(element, x), group.act(element, x)):
            raise Violation(f"{how}, two calls of act give different results")
    if not _same_bits(group.compose(g, h), group.compose(g, h)):
        raise Violation("two calls of compose give different results")
    if not _same_bits(group.inverse(g), group.inverse(g)):
        raise Violation("two calls of inverse give different results")


def precision(group: Group, g: Tensor, each: Tensor, x: Tensor, tolerance: float = 0.1) -> None:
    """The action works in float64, float32, float16 and bfloat16, with the digits of each.

    Args:
        group: The group.
        g: An element.
        each: One element per sample.
        x: A batch.
        tolerance: As in ``compatibility``: rounding may turn a nearest neighbour into another.
    """
    for element, how in _ways(g, each):
        for dtype in ROUNDING:
            given = x.to(dtype)
            y = group.act(element, given)
            if y.dtype != dtype:
                raise Violation(f"{how}, act returns {y.dtype} for {dtype}")
            if dtype != torch.float64:
                reference = group.act(element, given.double()).to(dtype)
                what = f"{how}, act in {dtype} and act in float64"
                _require_same(group, y, reference, given, tolerance, what, (element,))
        coarse = _moderate(x)
        fine = coarse * (1 - 2**-30)  # so that it stays in the range of an image
        moved = group.act(element, fine)
        if coarse.any() and moved.any() and torch.equal(group.act(element, coarse), moved):
            raise Violation(f"{how}, act on float64 loses digits: x and (1 - 2**-30)·x, which differ, give the same")


def batch(group: Group, g: Tensor, each: Tensor, x: Tensor) -> None:
    """Acting on a batch is acting on its samples, one by one.

    Args:
        group: The group.
        g: An element.
        each: One element per sample.
        x: A batch.
    """
    limit = ROUNDING[x.dtype]
    alone = torch.cat([group.act(g, row[None]) for row in x])
    _require_close(group.act(g, x), alone, x, limit, "by one element, act on the batch and act on each sample alone")
    alone = torch.cat([group.act(element, row[None]) for element, row in zip(each, x, strict=True)])
    what = "by one element per sample, act on the batch and act on each sample alone"
    _require_close(group.act(each, x), alone, x, limit, what)


def memory(group: Group, g: Tensor, each: Tensor, x: Tensor) -> None:
    """How x lies in memory makes no difference.

    Args:
        group: The group.
        g: An element.
        each: One element per sample.
        x: A batch.
    """
    last = x.ndim - 1
    orders = [[1, 0]] if x.ndim == 2 else [[0, *range(1, last - 1), last, last - 1], [0, *range(2, x.ndim), 1]]
    orders = orders if x.ndim > 1 else []
    for element, how in _ways(g, each):
        expected = group.act(element, x)
        for order in orders:
            back = torch.tensor(order).argsort().tolist()
            other = x.permute(order).contiguous().permute(back)
            if other.stride() != x.stride():
                what = f"{how}, act on x with strides {other.stride()} and on x in one piece"
                _require_close(group.act(element, other), expected, x, ROUNDING[x.dtype], what)


# --------------------------------------------------------------------------------------------- laws of the group


def closure(group: Group, g: Tensor, h: Tensor, each: Tensor, x: Tensor | None = None) -> None:
    """Products and inverses are elements again, one by one and in stacks.

    Args:
        group: The group.
        g: An element.
        h: An element.
        each: Elements, stacked.
        x: A batch, on which products of an infinite group must be able to act.
    """
    product, inverse = group.compose(g, h), group.inverse(g)
    _require_elements(group, product, (), "gh")
    _require_elements(group, inverse, (), "g⁻¹")
    if x is not None:
        group.act(product, x)
        group.act(inverse, x)
    n = len(each)
    products, inverses = group.compose(each[:, None], each[None]), group.inverse(each)
    _require_elements(group, products, (n, n), "each product of two elements in a stack")
    _require_elements(group, inverses, (n,), "each inverse of elements in a stack")
    for i, first in enumerate(each):
        _require_equal(group, inverses[i], group.inverse(first), None, f"the inverse of element {i} in a stack, alone")
        for j, second in enumerate(each):
            alone = group.compose(first, second)
            _require_equal(group, products[i, j], alone, None, f"the product of elements {i} and {j} in a stack, alone")


def identity(group: Group, g: Tensor, x: Tensor | None = None) -> None:
    """The identity changes no element: eg = g = ge.

    Args:
        group: The group.
        g: An element.
        x: A batch; elements that are different tensors but act on it alike count as equal.
    """
    e = group.identity
    _require_elements(group, e, (), "identity")
    _require_equal(group, group.compose(e, g), g, x, "eg, which must be g,")
    _require_equal(group, group.compose(g, e), g, x, "ge, which must be g,")


def associativity(group: Group, f: Tensor, g: Tensor, h: Tensor, x: Tensor | None = None) -> None:
    """Products do not depend on where the brackets stand: (fg)h = f(gh).

    Args:
        group: The group.
        f: An element.
        g: An element.
        h: An element.
        x: As in ``identity``.
    """
    left = group.compose(group.compose(f, g), h)
    _require_equal(group, left, group.compose(f, group.compose(g, h)), x, "(fg)h, which must be f(gh),")


def inverse(group: Group, g: Tensor, x: Tensor | None = None) -> None:
    """An element and its inverse cancel: g⁻¹g = e = gg⁻¹.

    Args:
        group: The group.
        g: An element.
        x: As in ``identity``.
    """
    undone = group.inverse(g)
    _require_equal(group, group.compose(undone, g), group.identity, x, "g⁻¹g, which must be the identity,")
    _require_equal(group, group.compose(g, undone), group.identity, x, "gg⁻¹, which must be the identity,")


# -------------------------------------------------------------------------------------------- laws of the action


def action_identity(group: Group, x: Tensor) -> None:
    """The identity changes no input: e·x = x.

    Args:
        group: The group.
        x: A batch.
    """
    limit = ROUNDING[x.dtype] if group.exact else max(_IDENTITY, ROUNDING[x.dtype])
    _require_close(group.act(group.identity, x), x, x, limit, "e·x and x", largest=group.exact)


def compatibility(group: Group, g: Tensor, h: Tensor, x: Tensor, tolerance: float = 0.1) -> None:
    """Acting in turn is acting by the product: g·(h·x) = (gh)·x.

    Args:
        group: The group.
        g: An element.
        h: An element.
        x: A batch.
        tolerance: Largest error of an action that interpolates, relative to the norm of each sample.
    """
    in_turn, at_once = group.act(g, group.act(h, x)), group.act(group.compose(g, h), x)
    _require_same(group, in_turn, at_once, x, tolerance, "g·(h·x) and (gh)·x", (h, g))


def action_inverse(group: Group, g: Tensor, x: Tensor, tolerance: float = 0.1) -> None:
    """The inverse undoes the action: g⁻¹·(g·x) = x = g·(g⁻¹·x).

    Args:
        group: The group.
        g: An element.
        x: A batch.
        tolerance: As in ``compatibility``.
    """
    undone = group.inverse(g)
    _require_same(group, group.act(undone, group.act(g, x)), x, x, tolerance, "g⁻¹·(g·x) and x", (g, undone))
    _require_same(group, group.act(g, group.act(undone, x)), x, x, tolerance, "g·(g⁻¹·x) and x", (undone, g))


def exactness(group: Group, g: Tensor, h: Tensor, x: Tensor) -> None:
    """A group that says it is exact moves and negates entries, and acts as a group bit by bit.

    Args:
        group: The group; nothing is asked of one whose ``exact`` is False.
        g: An element.
        h: An element.
        x: A batch.
    """
    if not group.exact:
        return
    for y in (x, -x):  # where there are zeros, one of the two has negative ones
        hy = group.act(h, y)
        before, after = (_rows(z).abs().sort(1).values for z in (y, hy))
        if not torch.equal(before, after):
            raise Violation("h·x has entries that x, up to signs, has not" + _furthest(after, before))
        unmoved, in_turn, at_once = group.act(group.identity, y), group.act(g, hy), group.act(group.compose(g, h), y)
        for actual, expected, what in ((unmoved, y, "e·x is not x"), (in_turn, at_once, "g·(h·x) is not (gh)·x")):
            rounds = _gap(actual, expected).max() <= ROUNDING[x.dtype] * y.abs().max()  # if not, other laws tell
            if rounds and not _same_bits(actual, expected):
                raise Violation(f"{what} bit by bit{_furthest(actual, expected)}")


def gradient(group: Group, g: Tensor, each: Tensor, x: Tensor) -> None:
    """The action is differentiable, and its gradient is right.

    That of an exact action is the action of the inverse, that of a linear one its transpose.

    Args:
        group: The group.
        g: An element.
        each: One element per sample.
        x: A batch.
    """
    weights = torch.linspace(-1, 2, x.numel(), dtype=torch.float64, device=x.device).view(x.shape)
    for element, how in _ways(g, each):
        given = _moderate(x).requires_grad_()
        with torch.enable_grad():
            y = group.act(element, given)
            if not y.requires_grad:
                raise Violation(f"{how}, act cuts the gradient: its result does not depend on x for autograd")
            found = torch.autograd.grad(y, given, weights, allow_unused=True)[0]
            if found is None:
                raise Violation(f"{how}, act cuts the gradient: its result does not depend on x for autograd")
            if group.exact:
                expected = group.act(group.inverse(element), weights)
                _require_close(found, expected, weights, 1e-9, f"{how}, the gradient of <w, g·x> and g⁻¹·w")
            elif _is_linear(partial(group.act, element), given.detach(), weights):
                forwards, backwards = (y.detach() * weights).sum(), (found * given.detach()).sum()
                if abs(forwards - backwards) > 1e-8 * max(1.0, float(y.detach().norm() * weights.norm())):
                    raise Violation(f"{how}, the gradient is not the transpose: <w, g·x> is not <gradient, x>")
            if not torch.autograd.gradcheck(partial(group.act, element), given, fast_mode=True, raise_exception=False):
                raise Violation(f"{how}, the gradient is not that of finite differences (torch.autograd.gradcheck)")


def maps(group: Group, g: Tensor, h: Tensor, x: Tensor, tolerance: float = 0.1) -> None:
    """Maps over the inputs' domain, such as saliency maps, move as the inputs do.

    ``act_on_map`` is an action itself, keeps shape and dtype, agrees with ``act`` but for signs where that does no more
    than move, and, if it takes maps whose channels were summed, moves them as the others. A group that says with a
    ValueError or a NotImplementedError that it knows of no maps is left in peace.

    Args:
        group: The group.
        g: An element.
        h: An element.
        x: A batch.
        tolerance: As in ``compatibility``.
    """
    m = x.abs() if group.exact else x
    try:
        group.act_on_map(group.identity, m)
    except (ValueError, NotImplementedError):
        return
    _require_action_on_maps(group, g, h, m, tolerance)
    if group.exact and not torch.equal(group.act_on_map(g, m), group.act(g, x).abs()):
        raise Violation("act_on_map(g, |x|) is not |g·x|" + _furthest(group.act_on_map(g, m), group.act(g, x).abs()))
    if not group.exact:
        _require_maps_to_move(group, g, x, tolerance)
    if x.ndim < 4:
        return
    m = _moderate(m)
    summed = m.sum(1, keepdim=True)
    expected = group.act_on_map(g, m).sum(1, keepdim=True)
    what = "the sum, with entries of axis 1 in other places,"
    try:
        elsewhere = group.act_on_map(g, m.roll(max(1, m.shape[1] // 2), 1)).sum(1, keepdim=True)
        _require_same(group, elsewhere, expected, summed, tolerance, what)
        moved = group.act_on_map(g, summed)
        group.act_on_map(h, summed)
    except Exception:
        return  # the group knows of no such maps, or axis 1 is no axis of channels
    _require_action_on_maps(group, g, h, summed, tolerance)
    _require_same(group, moved, expected, summed, tolerance, "act_on_map of summed channels and the sum of act_on_map")


def uniformity(group: Group, probe: Tensor) -> None:
    """Sampling reaches every element, each with the same probability.

    The elements of a group of up to 5,000 are counted, whatever they look like. Of others the distribution of s·x must
    be that of (gs)·x, unless they draw from a part of a group that is not compact (``Group.local``); draws that never
    leave a smaller group go unnoticed there. What ``sample_non_identity`` draws must be distributed likewise.

    Args:
        group: The group.
        probe: A batch of one sample that is not zero.
    """
    if isinstance(group, FiniteGroup):
        if group.order > 1:
            n = min(400 * group.order, max(100_000, 20 * group.order))
            _require_uniform(group.sample(n, _seeded(3)), range(group.order), "sample")
        if group.order > 2:
            for k in {1, min(group.order - 1, 3)}:
                for place in group.sample_non_identity(n, k, _seeded(4)):
                    _require_uniform(place, range(1, group.order), "sample_non_identity")
    elif 2 < group.order <= _COUNTED:
        n = 400 * int(group.order)
        _require_all(group.sample(n, _seeded(3)), int(group.order), "sample")
        _require_all(group.sample_non_identity(n, 1, _seeded(4))[0], int(group.order) - 1, "sample_non_identity")
    elif group.order > 2:
        _require_invariant(group, probe)


LAWS: dict[str, Callable[..., None]] = {
    law.__name__: law
    for law in (
        sampling,
        form,
        unwritten,
        determinism,
        batch,
        memory,
        precision,
        closure,
        identity,
        associativity,
        inverse,
        action_identity,
        compatibility,
        action_inverse,
        exactness,
        gradient,
        maps,
        uniformity,
    )
}
"""The laws by name, those that others build upon first."""


# ------------------------------------------------------------------------------------------------ what is compared


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ways(g: Tensor, each: Tensor) -> Iterator[tuple[Tensor, str]]:
    """The two ways to act, and how to say which."""
    yield g, "by one element"
    yield each, "by one element per sample"


def _moderate(x: Tensor) -> Tensor:
    """The same batch in float64, with entries of at most 1: no overflow, and finite differences that mean something."""
    x = x.double()
    largest = x.abs().max()
    return x / largest if largest > 0 else x


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


def _gap(actual: Tensor, expected: Tensor) -> Tensor:
    """How far entries are from each other, in float64; infinite where one is NaN."""
    gap = (actual.double() - expected.double()).abs().masked_fill(actual == expected, 0)  # so that inf equals inf
    return gap.nan_to_num(nan=inf)


def _furthest(actual: Tensor, expected: Tensor) -> str:
    """Where two tensors differ most, in words."""
    gap = _gap(actual, expected)
    index = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
    if not gap.any():
        return ": they differ in the signs of zeros"
    amount = "NaN" if (actual + expected)[index].isnan() else f"up to {float(gap.max()):.3g}"
    return f": they differ by {amount} at position {index}"


def _rows(x: Tensor) -> Tensor:
    """The entries of each sample, one row each; also of samples that are single numbers."""
    return x.reshape(len(x), -1)


def _require_close(
    actual: Tensor,
    expected: Tensor,
    x: Tensor,
    limit: float,
    what: str,
    *,
    largest: bool = True,
    on_the_way: Callable[[], Iterable[Tensor]] = tuple,
    hint: str = "",
) -> None:
    """Raises unless each sample agrees: in its largest entry, or in its norm.

    That is relative to ``x``, to ``expected`` and, only where this is not enough, to what there was ``on_the_way``: a
    rounding error is as large as the numbers that are rounded.
    """
    if actual.shape != expected.shape:
        raise Violation(f"{what} have shapes {tuple(actual.shape)} and {tuple(expected.shape)}")
    order = inf if largest else 2

    def sizes(z: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(_rows(z).double(), order, dim=1)
        return norms

    error = sizes(_gap(actual, expected))
    size = torch.maximum(sizes(x), sizes(expected).nan_to_num())
    if not (error > limit * size).any():
        return
    for other in on_the_way():
        size = torch.maximum(size, sizes(other).nan_to_num(posinf=0.0))
    if not (error > limit * size).any():
        return
    relative = float((error / size).nan_to_num(nan=0.0).max())
    found = f", {_more_than(limit, relative)} of the norm, where {limit:g} is allowed" if relative < _WHOLE else ""
    allowed = "" if largest else found + (hint and f". {hint}")
    raise Violation(f"{what} differ{_furthest(actual, expected).removeprefix(': they differ')}{allowed}")


def _more_than(limit: float, number: float) -> str:
    """A number in three digits, or as many as show that it is above the limit."""
    texts = (f"{number:.{digits}g}" for digits in range(3, 18))
    return next(text for text in texts if float(text) > limit)


def _require_same(
    group: Group,
    actual: Tensor,
    expected: Tensor,
    x: Tensor,
    tolerance: float,
    what: str,
    elements: Sequence[Tensor] = (),
) -> None:
    """Raises unless two results of acting agree: to rounding, or in norm where the group interpolates.

    ``elements`` are those that acted on ``x``, one after another.
    """
    rounding = ROUNDING[x.dtype]
    if group.exact:
        _require_close(actual, expected, x, rounding, what)
        return
    limit = max(tolerance, rounding)
    on_the_way = partial(_on_the_way, group, x, elements)
    _require_close(actual, expected, x, limit, what, largest=False, on_the_way=on_the_way, hint=_IF_INTERPOLATED)


def _on_the_way(group: Group, x: Tensor, elements: Sequence[Tensor]) -> list[Tensor]:
    """What elements make of ``x`` one after another, also with other signs, so that terms cannot all cancel."""
    found = [x]
    for g in elements:
        signs = 2 * torch.randint(2, x.shape, generator=_seeded(9)).to(x) - 1
        found += [group.act(g, z) for y in found for z in (y, signs * y)]
    return found


def _require_elements(group: Group, g: object, stack: tuple[int, ...], what: str) -> None:
    """Raises unless ``g`` is a stack of elements of this shape."""
    if not isinstance(g, Tensor):
        raise Violation(f"{what} should be a tensor: got {type(g).__name__}")
    shape = (*stack, *group.element_shape)
    if tuple(g.shape) != shape:
        raise Violation(f"{what} should have shape {shape}, as elements have: got {tuple(g.shape)}")
    if g.dtype != group.element_dtype:
        raise Violation(f"{what} should be of {group.element_dtype}, as elements are: got {g.dtype}")
    if isinstance(group, FiniteGroup) and ((g < 0) | (g >= group.order)).any():
        outside = g[(g < 0) | (g >= group.order)][0]
        raise Violation(f"{what} should be one of 0 to {group.order - 1}: got {int(outside)}")


def _require_equal(group: Group, actual: Tensor, expected: Tensor, x: Tensor | None, what: str) -> None:
    """Raises unless two elements are the same, or are different tensors that do the same to ``x``."""
    _require_elements(group, actual, tuple(expected.shape[: expected.ndim - len(group.element_shape)]), what)
    if not actual.is_floating_point():
        if not torch.equal(actual, expected):
            raise Violation(f"{what} is {actual.tolist()}, not {expected.tolist()}")
    elif not torch.allclose(actual, expected, rtol=1e-6, atol=1e-9):
        if x is None:
            raise Violation(f"{what} is {actual.tolist()}, not {expected.tolist()}")
        limit = max(_IDENTITY, ROUNDING[x.dtype])
        _require_close(
            group.act(actual, x), group.act(expected, x), x, limit, f"the actions of {what} and of that", largest=False
        )


def _is_linear(act: Callable[[Tensor], Tensor], x: Tensor, w: Tensor) -> bool:
    return torch.allclose(act(2 * x + w), 2 * act(x) + act(w), rtol=1e-9, atol=1e-9)


def evened(x: Tensor) -> Tensor:
    """The same along axes that may hold channels or coordinates, whose values an action may mix."""
    for axis in range(1, x.ndim):
        if x.shape[axis] <= SHORT:
            x = x.mean(axis, keepdim=True).expand(x.shape)
    return x


def _require_maps_to_move(group: Group, g: Tensor, x: Tensor, tolerance: float) -> None:
    """Raises unless maps stay positive and, where ``act`` only moves entries of an input, move as those do."""
    moved, largest = group.act_on_map(g, x.square()), x.square().max()
    if moved.min() < -max(tolerance, _RINGING) * largest:
        raise Violation("act_on_map makes a map negative that is not")
    even: Callable[[Tensor], Tensor] = getattr(group, "evened", evened)
    m = even(x.double().abs())
    ones = torch.ones_like(m)
    kept = (group.act(g, ones).abs() - 1).abs() <= tolerance / 100
    peaks = torch.zeros_like(_rows(m)).scatter_(1, _rows(m).argmax(1, keepdim=True), 1.0).view(m.shape)
    peaks = even(peaks)
    expected, moved_peaks = group.act(g, m), group.act(g, peaks)
    if expected.sum() < 0:
        expected, moved_peaks = -expected, -moved_peaks
    positive = expected.min() >= -0.1 * m.max() and moved_peaks.min() >= -_RINGING * peaks.max()
    moves = kept.double().mean() > 0.5 and positive
    if moves and _is_linear(partial(group.act, g), m, ones):
        what = "act_on_map(g, |x|) and g·|x|, for x the same in all channels,"
        _require_same(group, group.act_on_map(g, m), expected, m, tolerance, what)


def _require_action_on_maps(group: Group, g: Tensor, h: Tensor, m: Tensor, tolerance: float) -> None:
    unmoved, hm = group.act_on_map(group.identity, m), group.act_on_map(h, m)
    if (hm.shape, hm.dtype) != (m.shape, m.dtype):
        raise Violation(f"act_on_map returns {hm.dtype} of shape {tuple(hm.shape)} for {m.dtype} of {tuple(m.shape)}")
    _require_same(group, unmoved, m, m, min(tolerance, _IDENTITY), "act_on_map by the identity and the map")
    product = group.act_on_map(group.compose(g, h), m)
    _require_same(group, group.act_on_map(g, hm), product, m, tolerance, "act_on_map by h then g, and by gh,")


def _require_uniform(draws: Tensor, categories: range, how: str) -> None:
    """Raises unless counts pass a chi-square test (by Wilson and Hilferty's approximation)."""
    counts = torch.bincount(draws - categories.start, minlength=len(categories))
    expected = len(draws) / len(categories)
    if len(missing := (counts == 0).nonzero().flatten() + categories.start):
        shown = ", ".join(map(str, missing[:5].tolist())) + (", ..." if len(missing) > 5 else "")
        raise Violation(f"{how} never drew element {shown} in {len(draws)} draws")
    freedom = len(categories) - 1
    scale = 2 / (9 * freedom)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    if ((chi_square / freedom) ** (1 / 3) - (1 - scale)) / scale**0.5 > _SIGNIFICANT:
        worst = int((counts - expected).abs().argmax())
        raise Violation(
            f"{how} drew element {worst + categories.start} {int(counts[worst])} times in {len(draws)} draws, where "
            f"{expected:.0f} are expected"
        )


def _require_all(draws: Tensor, order: int, how: str) -> None:
    """Raises unless draws of elements that are no indices are all that there are, equally often."""
    found, index = torch.unique(draws.reshape(len(draws), -1), return_inverse=True, dim=0)
    if len(found) != order:
        raise Violation(f"{how} drew {len(found)} different elements in {len(draws)} draws, where there are {order}")
    if order > 1:
        _require_uniform(index, range(order), how)


def _require_invariant(group: Group, probe: Tensor) -> None:
    """Raises unless s·x and (gs)·x look alike in random directions (two-sample Kolmogorov-Smirnov test)."""
    probe = probe.double()
    n = max(200, min(5_000, 8_000_000 // probe.numel()))
    directions = torch.randn(probe.numel(), 3, dtype=torch.float64, generator=_seeded(5)).to(probe.device)
    rows = max(1, 4_000_000 // probe.numel())
    unit = 1e-6 * probe.norm()

    def projected(elements: Tensor) -> Tensor:
        elements = elements.to(probe.device)
        parts = [elements[start : start + rows] for start in range(0, n, rows)]
        images = [_rows(group.act(part, probe.expand(len(part), *probe.shape[1:]))) @ directions for part in parts]
        values: Tensor = torch.cat(images) / unit
        return values.round().T.contiguous().sort(1).values  # rounded, so that ties stay ties

    reference = projected(group.sample(n, _seeded(6)))

    def require_like_reference(drawn: Tensor, what: str) -> None:
        for a, b in zip(reference, projected(drawn), strict=True):
            points = torch.cat([a, b])
            below = [torch.searchsorted(side, points, right=True) for side in (a, b)]
            distance = float((below[0] - below[1]).abs().max()) / n
            if distance * (n / 2) ** 0.5 > _KOLMOGOROV:
                raise Violation(
                    f"{what} are distributed differently, by {n} draws: their distribution functions differ by up to "
                    f"{distance:.2g}"
                )

    if group.element_dtype.is_floating_point:  # one of uncountably many, the identity changes no distribution
        others = group.sample_non_identity(n, 1, _seeded(12))[0]
        require_like_reference(others, "what sample and sample_non_identity draw, as they act on x,")
    for number, g in enumerate(group.sample(4, _seeded(7)) if not group.local else ()):
        moved = group.compose(g, group.sample(n, _seeded(8 + number)))
        require_like_reference(moved, f"s·x and (gs)·x, for g = {g.tolist()} and drawn s,")
