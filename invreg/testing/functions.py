"""Is this function invariant, or equivariant, and if not, where is it worst?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from invreg.groups import FiniteGroup, Group

Function = Callable[[Tensor], Tensor]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Default tolerance, absolute and relative, by the dtype of the output; whole numbers must be equal."""

_SAMPLES = 16
"""How many elements per sample are drawn from a group that is not finite."""


def assert_invariant(
    f: Function,
    group: Group,
    inputs: Tensor,
    *,
    samples: int | None = None,
    rng: torch.Generator | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Raises unless a function gives the same for every input and what the group makes of it: f(g·x) = f(x).

    Args:
        f: A callable that takes batches to batches, e.g. a model in eval mode. It is called without gradients, once per
            element with the whole batch.
        group: The group that acts on ``inputs``.
        inputs: Batch, shape ``(N, ...)``.
        samples: Elements per sample that are drawn. None takes all elements of a finite group, and 16 of others.
        rng: Source of randomness; None uses torch's global one.
        rtol: Allowed difference relative to the largest output of a sample. None takes 1e-9 (float64), 1e-5 (float32),
            1e-2 (float16), 4e-2 (bfloat16) or 0 (other dtypes).
        atol: Allowed difference, added to that. None takes the same numbers.

    Raises:
        AssertionError: The function is not invariant. The message names the worst element and sample.
        TypeError: ``f`` is not callable, ``group`` no ``Group``, or ``inputs`` or an output no tensor.
        ValueError: ``inputs`` is empty, ``samples`` is below 1, or outputs are no batches.

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
        pairs = [
            (g, reference, _output(f, group, g, inputs, reference)) for g in _tried(group, len(inputs), samples, rng)
        ]
    _raise_worst(pairs, inputs, rtol, atol, f"The function is not invariant under {group!r}", "the output", group)


def assert_equivariant(
    f: Function,
    group: Group,
    output_group: Group,
    inputs: Tensor,
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
        inputs: Batch, shape ``(N, ...)``.
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
            for g in _tried(group, len(inputs), samples, rng)
        ]
    heading = f"The function is not equivariant from {group!r} to {output_group!r}"
    _raise_worst(pairs, inputs, rtol, atol, heading, "f(g·x), compared to g·f(x),", group)


def _check_group(group: object, name: str) -> None:
    if not isinstance(group, Group):
        given = f"the class {group.__name__}" if isinstance(group, type) else type(group).__name__
        raise TypeError(f"{name} must be a Group, e.g. CyclicRotation(4): got {given}.")


def _checked_reference(f: Function, group: Group, inputs: Tensor, samples: int | None) -> Tensor:
    """What the function makes of the inputs as they are, once the arguments are checked."""
    if not callable(f):
        raise TypeError(f"f must be callable, batches to batches: got {type(f).__name__}.")
    _check_group(group, "group")
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor, a batch of shape (N, ...): got {type(inputs).__name__}.")
    if inputs.ndim == 0 or inputs.numel() == 0:
        raise ValueError(f"inputs must be a batch with at least one sample: got shape {tuple(inputs.shape)}.")
    if samples is not None and samples < 1:
        raise ValueError(f"samples, the number of elements per sample, must be at least 1: got {samples}.")
    try:
        group.act(group.identity, inputs)
    except Exception as error:
        raise ValueError(
            f"inputs must be such that the group acts on them: {group!r} refuses {inputs.dtype} of shape "
            f"{tuple(inputs.shape)}. {error}"
        ) from error
    with torch.no_grad():
        reference = f(inputs)
    if not isinstance(reference, Tensor):
        raise TypeError(f"The function must return a tensor: got {type(reference).__name__}.")
    if reference.ndim == 0 or len(reference) != len(inputs):
        raise ValueError(
            f"The function must return one output per sample, shape ({len(inputs)}, ...): got shape "
            f"{tuple(reference.shape)}. Keep the batch axis."
        )
    return reference


def _tried(group: Group, n: int, samples: int | None, rng: torch.Generator | None) -> Iterator[Tensor]:
    """Each element of a finite group, or stacks of elements that are drawn, one for each of ``n`` samples."""
    if samples is None and isinstance(group, FiniteGroup):
        yield from group.elements()
    else:
        k = samples or _SAMPLES
        yield from group.sample(k * n, rng).view(k, n, *group.element_shape)


def _output(f: Function, group: Group, g: Tensor, inputs: Tensor, reference: Tensor) -> Tensor:
    """f(g·x), of the same shape as f(x)."""
    output = f(group.act(g.to(inputs.device), inputs))
    if output.shape != reference.shape:
        raise ValueError(
            f"The function must return the same shape for x and g·x: got {tuple(reference.shape)} and "
            f"{tuple(output.shape)}."
        )
    return output


def _raise_worst(
    pairs: list[tuple[Tensor, Tensor, Tensor]],
    inputs: Tensor,
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
        gap = (actual.double() - expected.double()).abs().masked_fill(actual == expected, 0.0)
        gap = gap.reshape(len(gap), -1).nan_to_num(nan=float("inf"))
        error, size = gap.amax(1), expected.double().abs().reshape(len(gap), -1).amax(1)
        allowed = atol + rtol * size
        too_far = ~(error <= allowed)  # NaN is too far
        failed += int(too_far.sum())
        excess = torch.where(too_far, error, 0.0)
        i = int(excess.argmax())
        if excess[i] > (worst[0] if worst else 0.0):
            element = g if g.ndim == len(group.element_shape) else g[i]
            worst = float(excess[i]), element, i, expected[i], actual[i], float(allowed[i])
    if worst is None:
        return
    distance, element, i, expected, actual, limit = worst
    gap = (actual.double() - expected.double()).abs().nan_to_num(nan=float("inf"))
    position = tuple(int(j) for j in torch.unravel_index(gap.argmax(), gap.shape)) if gap.ndim else ()
    at_identity = torch.equal(element, group.identity.to(element.device))
    hint = (
        " The identity changes nothing, so that the function gives different outputs for the same input: is it random, "
        "or a module in training mode?"
        if at_identity
        else ""
    )
    raise AssertionError(
        f"{heading}: element {element.tolist()} changes {subject} of sample {i} by {distance:.3g}, from "
        f"{float(expected[position]):.3g} to {float(actual[position]):.3g} at position {position}, where {limit:.3g} "
        f"is allowed (atol={atol:g}, rtol={rtol:g}). {failed} of {len(pairs) * len(inputs)} pairs of element and "
        f"sample fail.{hint}"
    )
