"""Which mistake would explain that a law is broken?

A guess is made only where it is verified on the input that breaks the law, or on another of its form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from invreg.groups import FiniteGroup, Group


def likely_mistake(law: str, group: Group, arguments: dict[str, Any]) -> str | None:
    """What looks wrong with a group that breaks a law, and what to do about it; None where nothing is sure.

    Args:
        law: The name of the law.
        group: The group that breaks it.
        arguments: What the law was broken with, by the names of its parameters.
    """
    for guess in _GUESSES.get(law, ()):
        try:
            found = guess(group, **{name: arguments[name] for name in _names(guess)})
        except Exception:  # a broken group may raise anywhere: then this guess is not verified
            continue
        if found:
            return found
    return None


def _names(guess: Callable[..., str | None]) -> tuple[str, ...]:
    """The parameters after the group."""
    return guess.__code__.co_varnames[1 : guess.__code__.co_argcount]


def _near(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors agree up to rounding of float32 or, in norm, a little more."""
    same = actual.shape == expected.shape
    return same and bool((actual.double() - expected.double()).norm() <= 1e-3 * expected.double().norm())


# ------------------------------------------------------------------------------------- how the action is programmed


def _other_axes(group: Group, g: Tensor, x: Tensor) -> str | None:
    shape = tuple(group.act(g, x).shape)
    if shape != tuple(x.shape) and sorted(shape) == sorted(x.shape):
        return f"axes trade places: {tuple(x.shape)} becomes {shape}."
    return None


def _always_float32(group: Group, g: Tensor, x: Tensor) -> str | None:
    returned = {group.act(g, x.to(dtype)).dtype for dtype in (torch.float64, torch.float32, torch.float16)}
    if returned == {torch.float32}:
        return "float32 looks hard-coded: take dtype (and device) from x."
    return None


def _wrong_dtype(group: Group, g: Tensor, x: Tensor) -> str | None:
    return None if group.act(g, x).dtype == x.dtype else _always_float32(group, g, x)


def _through_float32(group: Group, g: Tensor, x: Tensor) -> str | None:
    fine = x.double() / x.double().abs().max() * (1 + 2**-30)
    if torch.equal(group.act(g, fine), group.act(g, fine.float()).double()):
        return "float32 looks hard-coded inside act: take dtype (and device) from x."
    return None


def _on_cpu(group: Group, g: Tensor, x: Tensor) -> str | None:
    if group.act(g, x.to("meta")).device.type == "cpu":
        return "a tensor is made without device=x.device."
    return None


def _in_place(group: Group, g: Tensor, x: Tensor) -> str | None:
    given = x.clone()
    group.act(g, given)
    return "act works in place: begin with x.clone(), or use operations without a trailing underscore." * (
        given._version > 0
    )


def _maps_in_place(group: Group, g: Tensor, x: Tensor) -> str | None:
    given = x.clone()
    group.act_on_map(g, given)
    return "act_on_map works in place: begin with m.clone()." * (given._version > 0)


def _random_inside(group: Group, g: Tensor, each: Tensor, x: Tensor) -> str | None:
    for element in (g, each):
        results = []
        for seed in (1, 1, 2, 3, 4, 5):
            torch.manual_seed(seed)
            results.append(group.act(element, x))
        if torch.equal(results[0], results[1]) and not all(torch.equal(results[0], result) for result in results):
            return (
                "act draws random numbers: all that is random belongs into sample, so that g alone says what it does."
            )
    return None


def _first_of_stack(group: Group, each: Tensor, x: Tensor) -> str | None:
    if not (each == each[0]).all() and _near(group.act(each, x), group.act(each[0], x)):
        return "only the first element of a stack is used: act(g, x) takes one per sample when g is a stack."
    return None


def _stack_is_kept(group: Group, each: Tensor, x: Tensor) -> bool:
    return _near(group.act(each, x), torch.cat([group.act(g, row[None]) for g, row in zip(each, x, strict=True)]))


def _wrong_samples(group: Group, each: Tensor, x: Tensor) -> str | None:
    y = group.act(each, x)
    for order, how in _orders(len(x)):
        if not _stack_is_kept(group, each, x) and _near(
            y, torch.cat([group.act(each[j], x[i : i + 1]) for i, j in enumerate(order)])
        ):
            return f"elements of a stack go to the wrong samples{how}."
    return None


def _batch_axis_moves(group: Group, g: Tensor, each: Tensor, x: Tensor) -> str | None:
    for element in (g, *each):
        y, alone = group.act(element, x), torch.cat([group.act(element, row[None]) for row in x])
        if not _near(y, alone) and any(_near(y, alone[list(order)]) for order, _ in _orders(len(x))):
            return "the batch axis is moved: axis 0 must stay as it is, so count axes from the end or from 1."
    return None


def _orders(n: int) -> Iterator[tuple[tuple[int, ...], str]]:
    """Ways in which samples get mixed up: backwards, sorted otherwise, shifted."""
    yield tuple(reversed(range(n))), ", backwards"
    for shift in range(1, n):
        yield tuple((i + shift) % n for i in range(n)), ""
    for i in range(n):
        for j in range(i):
            order = list(range(n))
            order[i], order[j] = j, i
            yield tuple(order), ""


# -------------------------------------------------------------------------------------------- how elements compose


def _no_wrap_around(group: Group) -> str | None:
    if not isinstance(group, FiniteGroup):
        return None
    g = group.elements()
    if group.order > 1 and torch.equal(group.compose(g[:, None], g), g[:, None] + g):
        return "compose adds without wrapping around: return (g + h) % order."
    if group.order > 1 and torch.equal(group.inverse(g), -g):
        return "inverse negates without wrapping around: return -g % order."
    return None


def _other_neutral_element(group: Group, g: Tensor) -> str | None:
    if not isinstance(group, FiniteGroup):
        return None
    everything = group.elements()
    for e in everything[1:]:
        if torch.equal(group.compose(e, everything), everything) and torch.equal(
            group.compose(everything, e), everything
        ):
            return f"element {int(e)} is the neutral one: the identity must come first, as element 0."
    return None


def _subtracts(group: Group, g: Tensor) -> str | None:
    e = group.identity
    if _near(group.compose(g, e), g) and _near(group.compose(e, g), group.inverse(g)):
        return "compose undoes its second factor, as a difference does: it must be a product."
    return None


def _inverse_is_element(group: Group, g: Tensor, probe: Tensor) -> str | None:
    if torch.equal(group.inverse(g), g) and not _near(group.act(g, group.act(g, probe)), probe):
        return "inverse looks like the element itself, which only mirrors and half turns undo."
    return None


def _inverse_is_right_inside(group: Group, g: Tensor, probe: Tensor) -> str | None:
    if not isinstance(group, FiniteGroup) or _near(group.act(group.inverse(g), group.act(g, probe)), probe):
        return None
    everything = group.elements()
    right = everything[group.compose(everything, g) == 0]
    if len(right) == 1 and int(right[0]) != int(group.inverse(g)):
        return f"inverse({int(g)}) should be {int(right[0])}, by which compose gives the identity."
    return None


def _inverse_is_right_outside(group: Group, g: Tensor, probe: Tensor) -> str | None:
    undone = _near(group.act(group.inverse(g), group.act(g, probe)), probe)
    if undone and not _near(group.act(g, probe), probe):
        return "inverse undoes the action, so that compose looks wrong."
    return None


# ------------------------------------------------------------------------------------- how action and product agree


def _other_idle_element(group: Group, x: Tensor) -> str | None:
    if not isinstance(group, FiniteGroup):
        return None
    for index in range(1, group.order):
        if _near(group.act(torch.tensor(index), x), x):
            return f"element {index} changes nothing here: the identity must come first, as element 0."
    return None


def _reversed(group: Group, g: Tensor, h: Tensor, x: Tensor) -> str | None:
    more = (group.sample(8, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    commute = True
    for a, b in [(g, h), *zip(*more, strict=True)]:
        other_way = group.act(group.compose(b, a), x)
        if not _near(group.act(a, group.act(b, x)), other_way):
            return None
        commute = commute and _near(group.act(group.compose(a, b), x), other_way)
    if commute:
        return None
    return (
        "composition looks reversed: g·(h·x) = (hg)·x holds on this input. Swap the factors in compose, or let "
        "act undo what it does now."
    )


def _second_only(group: Group, g: Tensor, h: Tensor, x: Tensor) -> str | None:
    product = group.act(group.compose(g, h), x)
    for element, name, other in ((g, "g", h), (h, "h", g)):
        if _near(product, group.act(element, x)) and not _near(group.act(other, x), x):
            return f"gh acts as {name} alone on this input: compose, or act, forgets the other factor."
    return None


def _inverse_acts_alike(group: Group, g: Tensor, x: Tensor) -> str | None:
    if _near(group.act(group.inverse(g), x), group.act(g, x)):
        return "inverse looks like the element itself: g⁻¹·x = g·x holds on this input."
    return None


def _loses(group: Group, g: Tensor, x: Tensor) -> str | None:
    once = group.act(group.inverse(g), group.act(g, x))
    again = group.act(group.inverse(g), group.act(g, once))
    if not _near(once, x) and _near(again, once):
        return "act loses part of the input, the same each time: a mean, what leaves the frame, digits."
    return None


def _not_exact(group: Group, x: Tensor) -> str | None:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(x.shape, generator=rng).to(x)  # the smallest input that breaks the law may be zero
    for g in group.sample(4, rng):
        before, after = (y.abs().reshape(len(x), -1).sort(1).values for y in (x, group.act(g, x)))
        if not torch.equal(before, after):
            return "act computes new values: set exact = False."
    return None


# ---------------------------------------------------------------------------------- gradients, maps, random elements


def _cut(group: Group, g: Tensor, each: Tensor, x: Tensor) -> str | None:
    given = x.double().requires_grad_()
    if not all(group.act(element, given).requires_grad for element in (g, each)):
        return "the gradient is cut: look for detach, .data, numpy, no_grad, or a new tensor filled with values of x."
    return None


def _untransposed(group: Group, g: Tensor, each: Tensor, x: Tensor) -> str | None:
    for element in (g, each):
        given = x.double().requires_grad_()
        weights = torch.linspace(-1, 2, x.numel(), dtype=torch.float64).view(x.shape)
        (found,) = torch.autograd.grad(group.act(element, given), given, weights)
        if _near(found, group.act(element, weights)) and not _near(found, group.act(group.inverse(element), weights)):
            return "backward acts by g, where its transpose, for an exact action g⁻¹, is due."
    return None


def _signed_maps(group: Group, g: Tensor, x: Tensor) -> str | None:
    moved = group.act_on_map(g, x.abs())
    if moved.min() < -(0 if group.exact else 0.5) * x.abs().max():
        return "act_on_map changes values, as act does: override it, so that it only moves them."
    return None


def _unmoved_maps(group: Group, g: Tensor, x: Tensor) -> str | None:
    m = x.abs()
    if _near(group.act_on_map(g, m), m) and not _near(group.act(g, x).abs(), m):
        return "act_on_map leaves maps where they are, although act moves entries."
    return None


def _maps_move_back(group: Group, g: Tensor, x: Tensor) -> str | None:
    moved, expected = group.act_on_map(g, x.abs()), group.act(g, x).abs()
    if not _near(moved, expected) and _near(moved, group.act(group.inverse(g), x).abs()):
        return "act_on_map moves maps by the inverse."
    return None


def _ignores_rng(group: Group) -> str | None:
    draws: list[Tensor] = []
    for _ in range(2):
        torch.manual_seed(1)
        draws.append(group.sample(64, torch.Generator().manual_seed(len(draws))))
    if torch.equal(*draws):
        torch.manual_seed(2)
        if not torch.equal(group.sample(64, torch.Generator().manual_seed(1)), draws[0]):
            return "sample ignores rng: pass generator=rng to what draws."
        return "sample seeds itself: draw from rng, or from torch's global generator where it is None."
    return None


def _off_by_one(group: Group) -> str | None:
    if isinstance(group, FiniteGroup) and group.order > 1:
        draws = group.sample(100 * group.order, torch.Generator().manual_seed(3))
        if set(draws.tolist()) == set(range(group.order - 1)):
            return "the last element is left out: torch.randint(order, ...) already excludes its upper end."
    return None


def _not_compact(group: Group) -> str | None:
    if group.element_dtype.is_floating_point:
        draws = group.sample(200, torch.Generator().manual_seed(3))
        powers = draws
        for _ in range(6):
            powers = group.compose(powers, powers)
        if not (powers.abs() <= 8 * draws.abs().max()).all():
            return "draws cover a part of the group only: set local = True if no uniform distribution exists."
    return None


_GUESSES: dict[str, tuple[Callable[..., str | None], ...]] = {
    "sampling": (_ignores_rng,),
    "form": (_other_axes, _wrong_dtype, _on_cpu),
    "unwritten": (_in_place, _maps_in_place),
    "determinism": (_random_inside,),
    "precision": (_always_float32, _through_float32),
    "batch": (_batch_axis_moves, _first_of_stack, _wrong_samples),
    "closure": (_no_wrap_around,),
    "identity": (_other_neutral_element, _subtracts),
    "inverse": (_inverse_is_element, _inverse_is_right_inside, _inverse_is_right_outside),
    "action_identity": (_other_idle_element,),
    "compatibility": (_reversed, _second_only),
    "action_inverse": (_inverse_acts_alike, _loses),
    "exactness": (_not_exact,),
    "gradient": (_cut, _untransposed),
    "maps": (_signed_maps, _unmoved_maps, _maps_move_back),
    "uniformity": (_off_by_one, _not_compact),
}
"""What to look for, in this order, by the law that is broken."""
