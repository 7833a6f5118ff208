"""Is this function invariant, or equivariant, and if not, where is it worst?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor

from invreg.groups import FiniteGroup, Group
from invreg.groups.batch import Batch, first_tensor, map_tensors, tensors

Function = Callable[[Batch], Tensor]

_TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 4e-2,
    torch.complex128: 1e-9,
    torch.complex64: 1e-5,
}
"""Default tolerance, absolute and relative, by the dtype of the output; whole numbers must be equal."""

_SAMPLES = 16
"""How many elements per sample are drawn from a group that is not finite."""


def assert_invariant(
    f: Function,
    group: Group,
    inputs: Batch,
    *,
    samples: int | None = None,
    rng: torch.Generator | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Raises unless a function gives the same for every input and what the group makes of it: f(g·x) = f(x).

    Args:
        f: A callable that takes batches to batches, e.g. a model in eval mode. It is called without gradients, once per
            element with a copy of the whole batch.
        group: The group that acts on ``inputs``.
        inputs: Batch, shape ``(N, ...)``; or a mapping, tuple or list of such, as ``OnKeys`` acts on.
        samples: Elements per sample that are drawn. None takes all elements of a finite group, and 16 of others.
        rng: Source of randomness; None uses torch's global one.
        rtol: Allowed difference relative to the largest output of a sample. None takes 1e-9 (float64), 1e-5 (float32),
            1e-2 (float16), 4e-2 (bfloat16) or 0 (other dtypes).
        atol: Allowed difference, added to that. None takes the same numbers.

    Raises:
        AssertionError: The function is not invariant, or gives NaN. The message names the worst element and sample.
        TypeError: ``f`` is not callable, ``group`` no ``Group``, ``inputs`` or an output no tensor, or ``samples`` no
            whole number.
        ValueError: ``inputs`` is empty, ``samples`` is below 1, or outputs are no batches of one shape and dtype.

    Example:
        >>> from invreg import CyclicRotation
        >>> x = torch.arange(8.0).view(2, 2, 2)
        >>> assert_invariant(lambda x: x.amax((1, 2)), CyclicRotation(4), x)
        >>> assert_invariant(lambda x: x[:, 0], CyclicRotation(4), x)
        Traceback (most recent call last):
        ...
        AssertionError: The function is not invariant under CyclicRotation(order=4): element 2 changes the output
        of sample 0 by 3, from 0 to 3 at position (0,), where 2e-05 is allowed (atol=1e-05, rtol=1e-05).
        6 of 8 pairs of element and sample fail.
    """
    reference = _checked_reference(f, group, inputs, samples)
    with torch.no_grad():
        pairs = [(g, reference, _output(f, group, g, inputs, reference)) for g in _tried(group, inputs, samples, rng)]
    _raise_worst(pairs, rtol, atol, f"The function is not invariant under {group!r}", "the output", group)


def assert_equivariant(
    f: Function,
    group: Group,
    output_group: Group,
    inputs: Batch,
    *,
    samples: int | None = None,
    rng: torch.Generator | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Raises unless a function commutes with the group: f(g·x) = g·f(x).

    Args:
        f: As in ``assert_invariant``.
        group: The group that acts on ``inputs``.
        output_group: The same group as it acts on outputs: its elements are those of ``group``. Often ``group`` itself.
        inputs: As in ``assert_invariant``.
        samples: As in ``assert_invariant``.
        rng: As in ``assert_invariant``.
        rtol: As in ``assert_invariant``.
        atol: As in ``assert_invariant``.

    Raises:
        AssertionError: The function is not equivariant. The message names the worst element and sample.
        TypeError: As for ``assert_invariant``; also if ``output_group`` is no ``Group``.
        ValueError: As for ``assert_invariant``; also if the groups have different elements or ``output_group`` cannot
            act on outputs.

    Example:
        >>> from invreg import CyclicRotation
        >>> x = torch.arange(8.0).view(2, 2, 2)
        >>> assert_equivariant(torch.relu, CyclicRotation(4), CyclicRotation(4), x)
        >>> assert_equivariant(lambda x: x.cumsum(-1), CyclicRotation(4), CyclicRotation(4), x)
        Traceback (most recent call last):
        ...
        AssertionError: The function is not equivariant from CyclicRotation(order=4) to CyclicRotation(order=4): ...
    """
    reference = _checked_reference(f, group, inputs, samples)
    _check_group(output_group, "output_group")
    forms = [
        (tuple(each.element_shape), each.element_dtype, each.order if isinstance(each, FiniteGroup) else None)
        for each in (group, output_group)
    ]
    if forms[0] != forms[1]:
        raise ValueError(
            f"output_group must have the elements of group, {group!r}, with (element_shape, element_dtype, order) = "
            f"{forms[0]}: got {output_group!r}, with {forms[1]}."
        )
    with torch.no_grad():
        try:
            output_group.act(output_group.identity, reference)
        except Exception as error:
            raise ValueError(
                f"output_group must act on what the function returns: {output_group!r} refuses {reference.dtype} of "
                f"shape {tuple(reference.shape)}. {error}"
            ) from error
        pairs = [
            (g, output_group.act(g, reference), _output(f, group, g, inputs, reference))
            for g in _tried(group, inputs, samples, rng)
        ]
    heading = f"The function is not equivariant from {group!r} to {output_group!r}"
    _raise_worst(pairs, rtol, atol, heading, "f(g·x), compared to g·f(x),", group)


def _check_group(group: object, name: str) -> None:
    if not isinstance(group, Group):
        given = f"the class {group.__name__}" if isinstance(group, type) else type(group).__name__
        raise TypeError(f"{name} must be a Group, e.g. CyclicRotation(4): got {given}.")


def _checked_reference(f: Function, group: Group, inputs: Batch, samples: int | None) -> Tensor:
    """What the function makes of the inputs as they are, once the arguments are checked."""
    if not callable(f):
        raise TypeError(f"f must be callable, batches to batches: got {type(f).__name__}.")
    _check_group(group, "group")
    several = isinstance(inputs, (Mapping, tuple, list)) and len(inputs) > 0
    found: list[Any] = [x for _, x in tensors(inputs)] if several else [inputs]
    if not all(isinstance(x, Tensor) for x in found):
        raise TypeError(
            "inputs must be a tensor, a batch of shape (N, ...), or a mapping, tuple or list of such: got "
            f"{type(inputs).__name__}."
        )
    for x in found:
        if x.ndim == 0 or x.numel() == 0:
            raise ValueError(f"inputs must be a batch with at least one sample: got shape {tuple(x.shape)}.")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int)):
        raise TypeError(f"samples, the number of elements per sample, must be a whole number: got {samples!r}.")
    if samples is not None and samples < 1:
        raise ValueError(f"samples, the number of elements per sample, must be at least 1: got {samples}.")
    try:
        group.act(group.identity, inputs)
    except Exception as error:
        came = ", ".join(f"{x.dtype} of shape {tuple(x.shape)}" for x in found)
        raise ValueError(
            f"inputs must be such that the group acts on them: {group!r} refuses {came}. {error}"
        ) from error
    with torch.no_grad():
        reference = f(map_tensors(torch.clone, inputs))
    if not isinstance(reference, Tensor):
        raise TypeError(f"The function must return a tensor: got {type(reference).__name__}.")
    if reference.ndim == 0 or len(reference) != len(found[0]):
        raise ValueError(
            f"The function must return one output per sample, shape ({len(found[0])}, ...): got shape "
            f"{tuple(reference.shape)}. Keep the batch axis."
        )
    return reference


def _tried(group: Group, inputs: Batch, samples: int | None, rng: torch.Generator | None) -> Iterator[Tensor]:
    """Each element of a finite group, or stacks of elements that are drawn, one for each sample."""
    if samples is None and isinstance(group, FiniteGroup):
        yield from group.elements()
    else:
        k, n = samples or _SAMPLES, len(first_tensor(inputs))
        yield from group.sample(k * n, rng).view(k, n, *group.element_shape)


def _output(f: Function, group: Group, g: Tensor, inputs: Batch, reference: Tensor) -> Tensor:
    """f(g·x), of the same shape and dtype as f(x)."""
    x = group.act(g.to(first_tensor(inputs).device), map_tensors(torch.clone, inputs))
    output = f(map_tensors(torch.clone, x))  # an action may return a view
    if not isinstance(output, Tensor):
        raise TypeError(f"The function must return a tensor: got {type(output).__name__}.")
    for what, first, second in (
        ("shape", tuple(reference.shape), tuple(output.shape)),
        ("dtype", reference.dtype, output.dtype),
    ):
        if first != second:
            raise ValueError(f"The function must return the same {what} for x and g·x: got {first} and {second}.")
    return output


def _wide(x: Tensor) -> Tensor:
    """In double precision, where differences round least."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _gap(actual: Tensor, expected: Tensor) -> Tensor:
    """How far entries are from each other; infinite where one is NaN or only one infinite."""
    gap = (_wide(actual) - _wide(expected)).abs().masked_fill(actual == expected, 0.0)  # so that inf equals inf
    return gap.nan_to_num(nan=inf, posinf=inf)


def _raise_worst(
    pairs: list[tuple[Tensor, Tensor, Tensor]],
    rtol: float | None,
    atol: float | None,
    heading: str,
    subject: str,
    group: Group,
) -> None:
    """Raises unless each output, third, is its reference, second; names the worst element, first, and sample."""
    dtype = pairs[0][1].dtype
    rtol, atol = (_TOLERANCE.get(dtype, 0.0) if given is None else given for given in (rtol, atol))
    worst: tuple[float, Tensor, int, Tensor, Tensor, float] | None = None
    failed = 0
    for g, expected, actual in pairs:
        error = _gap(actual, expected).reshape(len(actual), -1).amax(1)
        finite = _wide(expected).abs().nan_to_num(nan=0.0, posinf=0.0)
        allowed = atol + rtol * finite.reshape(len(expected), -1).amax(1)
        too_far = ~(error <= allowed)
        failed += int(too_far.sum())
        excess = torch.where(too_far, error, 0.0)
        i = int(excess.argmax())
        if excess[i] > (worst[0] if worst else 0.0):
            element = g if g.ndim == len(group.element_shape) else g[i]
            worst = float(excess[i]), element, i, expected[i], actual[i], float(allowed[i])
    if worst is None:
        return
    distance, element, i, expected, actual, limit = worst
    gap = _gap(actual, expected)
    position = tuple(int(j) for j in torch.unravel_index(gap.argmax(), gap.shape)) if gap.ndim else ()
    before, after = (f"{_wide(y)[position].item():.3g}" for y in (expected, actual))
    of = f"{failed} of {len(pairs) * len(pairs[0][1])} pairs of element and sample fail."
    if distance == inf:
        raise AssertionError(
            f"{heading}: {subject} of sample {i} under element {element.tolist()} cannot be compared at position "
            f"{position}, where it is {after}, and {before} is expected. Outputs should be finite. {of}"
        )
    at_identity = torch.equal(element, group.identity.to(element.device))
    hint = (
        " The identity changes nothing, so that the function gives different outputs for the same input: is it random, "
        "or a module in training mode?"
        if at_identity
        else ""
    )
    raise AssertionError(
        f"{heading}: element {element.tolist()} changes {subject} of sample {i} by {distance:.3g}, from "
        f"{before} to {after} at position {position}, where {limit:.3g} "
        f"is allowed (atol={atol:g}, rtol={rtol:g}). {of}{hint}"
    )
