"""Which number says how far a group moves a model's output?

Pure functions: invariance errors of two output batches, and the evaluation of a model over transformed batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized

import torch
import torch.nn.functional as F
from torch import Tensor

from invreg.groups.batch import Batch, first_tensor, map_tensors, tensors

ErrorFunction = Callable[[Tensor, Tensor], Tensor]
"""A per-sample invariance error: takes outputs at ``x`` and at ``gx``, each ``(N, C, ...)``, returns ``(N,)``."""

Model = Callable[[Batch], Tensor]
"""Any callable from a batch of inputs to a batch of logits; a ``torch.nn.Module`` is one."""

__all__ = [
    "ErrorFunction",
    "Model",
    "distribution_error",
    "logit_error",
    "normalized_logit_error",
    "orbit_outputs",
    "predicted_class",
]


def logit_error(reference: Tensor, transformed: Tensor) -> Tensor:
    r"""Half the squared distance that the group moves the logits (LI).

    .. math:: e(x, g) = \tfrac12 \lVert f(x) - f(gx) \rVert_2^2

    Args:
        reference: Outputs at ``x``, shape ``(N, C, ...)`` with classes on axis 1 or ``(N,)`` for a single logit;
            floating point. Errors of several positions per sample are averaged over positions, as
            ``torch.nn.functional.cross_entropy`` does; each position is compared with itself, so that outputs that
            shall move with the input (segmentation) must be moved back first.
        transformed: Outputs at ``gx``, same shape and dtype as ``reference``.

    Returns:
        Shape ``(N,)``, float32 or wider. Unit: logits squared. Zero where the logits agree.

    Raises:
        ValueError: The shapes or dtypes differ, or are not those of logits.

    Source: Moskalev et al. (2023), eq. (2), per sample and element.

    Example:
        >>> logit_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
        tensor([2.])
    """
    reference, transformed = _logits(reference, transformed)
    return 0.5 * _mean_over_positions((reference - transformed).square().sum(1))


def distribution_error(reference: Tensor, transformed: Tensor) -> Tensor:
    r"""How far the group moves the predictive distribution (DI), by the Kullback-Leibler divergence.

    .. math:: e(x, g) = \mathrm{KL}(p_x \,\Vert\, p_{gx}), \qquad p_x = \operatorname{softmax} f(x)

    A single logit is a Bernoulli distribution: its probability is the logit's sigmoid.

    Args:
        reference: Outputs at ``x``, as in ``logit_error``.
        transformed: Outputs at ``gx``, same shape and dtype as ``reference``.

    Returns:
        Shape ``(N,)``, float32 or wider. Unit: nats. Never negative; zero where the distributions agree.

    Raises:
        ValueError: The shapes or dtypes differ, or are not those of logits.

    Source: Moskalev et al. (2023), eq. (1), per sample and element.

    Example:
        >>> distribution_error(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([0.4338])
    """
    reference, transformed = (_log_probabilities(logits) for logits in _logits(reference, transformed))
    divergence = (reference.exp() * (reference - transformed)).sum(1)
    return _mean_over_positions(divergence.clamp_min(0))


def normalized_logit_error(reference: Tensor, transformed: Tensor, *, eps: float = 1e-12) -> Tensor:
    r"""The squared distance that the group moves the logits, relative to their squared norm.

    .. math:: e(x, g) = \frac{\lVert f(x) - f(gx) \rVert_2^2}{\max(\lVert f(x) \rVert_2^2, \epsilon)}

    Args:
        reference: Outputs at ``x``, as in ``logit_error``.
        transformed: Outputs at ``gx``, same shape and dtype as ``reference``.
        eps: The least squared norm to divide by, so that zero logits give a finite error.

    Returns:
        Shape ``(N,)``, float32 or wider. No unit. Zero where the logits agree.

    Raises:
        ValueError: The shapes or dtypes differ, or are not those of logits.

    A single logit is close to zero wherever the model is undecided, and the error large: prefer another one there.

    Source: Moskalev et al. (2023), section 4.4, per sample and element.

    Example:
        >>> normalized_logit_error(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 9.0]]))
        tensor([1.])
    """
    reference, transformed = _logits(reference, transformed)
    distance = _mean_over_positions((reference - transformed).square().sum(1))
    return distance / _mean_over_positions(reference.square().sum(1)).clamp_min(eps)


def predicted_class(outputs: Tensor) -> Tensor:
    """The most probable class of each sample.

    Args:
        outputs: Logits, shape ``(N, C, ...)``, or ``(N, 1, ...)`` or ``(N,)`` for a single logit.

    Returns:
        Shape ``(N, ...)``, int64. For a single logit, 1 where it is positive.

    Example:
        >>> predicted_class(torch.tensor([[0.1, 0.7], [3.0, -1.0]]))
        tensor([1, 0])
    """
    if not has_single_logit(outputs):
        return outputs.argmax(1)
    return ((outputs if outputs.ndim == 1 else outputs[:, 0]) > 0).long()


def orbit_outputs(model: Model, transformed: Batch) -> Tensor:
    """The model's outputs on a stack of transformed batches, by one forward over all of them.

    Args:
        model: Any callable from inputs ``(M, ...)`` to logits ``(M, C, ...)`` or ``(M,)``.
        transformed: Stack of batches, shape ``(K, N, ...)``, such as ``group.orbit(x)``; or a mapping, tuple or list
            of such stacks.

    Returns:
        Shape ``(K, N, C, ...)`` or ``(K, N)``.

    Raises:
        TypeError: The model returned something else than a floating-point tensor.
        ValueError: The model returned another number of rows than it was given.

    Example:
        >>> from invreg import Flip
        >>> orbit_outputs(lambda x: x[:, :2], Flip().orbit(torch.tensor([[1.0, 2.0, 3.0]])))
        tensor([[[1., 2.]],
        <BLANKLINE>
                [[3., 2.]]])
    """
    stacked = first_tensor(transformed).shape[:2]
    outputs = checked_outputs(model(map_tensors(lambda t: t.flatten(0, 1), transformed)), stacked.numel())
    return outputs.reshape(*stacked, *outputs.shape[1:])


def has_single_logit(outputs: Tensor) -> bool:
    """Whether outputs are the logits of class 1 alone, ``(N,)`` or ``(N, 1, ...)``, rather than one per class."""
    return outputs.ndim == 1 or outputs.shape[1] == 1


def checked_inputs(inputs: Batch) -> Batch:
    """Returns ``inputs`` if they are a batch that a group can act on and a model can be measured on."""
    if isinstance(inputs, Tensor):
        _check_rows(inputs)
        if not inputs.is_floating_point():
            raise TypeError(f"Inputs must be floating point: got {inputs.dtype}. Convert them, e.g. x.float() / 255.")
        return inputs
    if not isinstance(inputs, (Mapping, tuple, list)) or not len(inputs):
        came = "an empty " * (isinstance(inputs, Sized) and not len(inputs)) + type(inputs).__name__
        raise TypeError(
            f"Inputs must be one tensor of shape (N, ...): got {came}. A group that acts on several, OnKeys, also "
            "takes a mapping, tuple or list of them."
        )
    for key, entry in tensors(inputs):
        if not isinstance(entry, Tensor):
            raise TypeError(f"Inputs of several tensors must hold nothing else: got {type(entry).__name__} at {key!r}.")
        _check_rows(entry)
        if len(entry) != len(first_tensor(inputs)):
            raise ValueError(
                f"Inputs of several tensors must have one N: got shape {tuple(entry.shape)} at {key!r} beside "
                f"{tuple(first_tensor(inputs).shape)}."
            )
    return inputs


def _check_rows(inputs: Tensor) -> None:
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError(f"Inputs must be a batch of at least one sample: got shape {tuple(inputs.shape)}. Skip it.")


def checked_outputs(outputs: Tensor, rows: int) -> Tensor:
    """Returns ``outputs`` if they are logits with this many rows."""
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"The model must return its logits as one tensor: got {type(outputs).__name__}. "
            "Wrap it, e.g. lambda x: model(x)[0] or lambda x: model(x).logits."
        )
    if not outputs.is_floating_point():
        raise TypeError(f"The model must return floating-point logits: got {outputs.dtype}.")
    if outputs.ndim == 0 or len(outputs) != rows:
        raise ValueError(
            f"The model must return one row of logits per sample: got shape {tuple(outputs.shape)} for {rows} samples. "
            "Keep the batch on axis 0, and drop none of its rows."
        )
    return outputs


def _logits(reference: Tensor, transformed: Tensor) -> tuple[Tensor, Tensor]:
    """Checks two output batches and returns them as ``(N, C, ...)`` in at least float32."""
    if reference.shape != transformed.shape or reference.dtype != transformed.dtype:
        raise ValueError(
            "The outputs to compare must have one shape and dtype: "
            f"got {tuple(reference.shape)}, {reference.dtype} and {tuple(transformed.shape)}, {transformed.dtype}. "
            "Under autocast, compute both inside it."
        )
    if reference.ndim == 0 or not reference.is_floating_point():
        raise ValueError(
            "Outputs must be floating-point logits of shape (N, C, ...) or (N,): "
            f"got {tuple(reference.shape)}, {reference.dtype}."
        )
    dtype = torch.promote_types(reference.dtype, torch.float32)
    shape = reference.shape if reference.ndim > 1 else (*reference.shape, 1)
    return reference.to(dtype).reshape(shape), transformed.to(dtype).reshape(shape)


def _log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over axis 1; a single logit stands for the two classes of a Bernoulli distribution."""
    if logits.shape[1] > 1:
        return F.log_softmax(logits, 1)
    return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], 1)


def _mean_over_positions(values: Tensor) -> Tensor:
    """Averages ``(N, ...)`` to ``(N,)``."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values
