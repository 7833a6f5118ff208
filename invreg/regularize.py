"""How do I regularise a model whose training loop I cannot change?"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from math import inf
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from invreg.asked import Asked
from invreg.calls import Call, DataArgument, logits_of, map_nested
from invreg.constraint import InvarianceConstraint
from invreg.functional import checked_outputs
from invreg.groups import OnKeys
from invreg.groups.batch import first_tensor
from invreg.losses import InvarianceLoss

__all__ = ["Regularization", "regularize"]


def regularize(
    model: nn.Module,
    loss: InvarianceLoss,
    weight: float | Callable[[int], float] | InvarianceConstraint,
    *,
    loss_scale: float | Callable[[], float] = 1.0,
    inputs: str | None = None,
    outputs: Callable[[Any], Tensor] | None = None,
) -> Regularization:
    r"""Adds an invariance loss to the training of a model without a change to the training loop.

    From then on, each forward in training mode also measures ``penalty = weight * loss(model, x, model(x))``, and ties
    it to the model's output: when the loop calls ``backward`` on whatever it computes from that output, the parameters
    receive the penalty's gradient as well, as if the loop had added the penalty to its own loss. The output's values
    are bitwise the same, and so is the loss that the loop reports; ``handle.value`` is what it does not see. In
    evaluation mode and under ``torch.no_grad()`` nothing happens.

    It holds for any loop: trainers, mixed precision, compiled and distributed models. Wrap the model for these
    before or after. What holds for ``InvarianceLoss``, of batch normalisation and dropout, holds here.

    **Scaled losses.** The penalty's gradient does not pass through the loop's own arithmetic, so say by which factor
    the loop multiplies its loss before it calls ``backward``: ``loss_scale=1 / 4`` where it divides by four because it
    accumulates gradients over four batches; ``loss_scale=scaler.get_scale`` with a ``torch.amp.GradScaler``. A
    callable is asked at each forward.

    **Other arguments.** The group acts on one argument of the model, the data. Of the other arguments, tensors with one
    row per sample (labels, masks) are repeated for the transformed data, and all else is passed as it came.

    Two forwards before one backward are penalised twice, as each of them is one call of the loss; so is a backward that
    runs twice through one graph. A forward without a backward has no effect on the parameters. What else is
    differentiated through the outputs (a gradient penalty) sees the penalty's gradient as well.

    Args:
        model: The model, or what ``DistributedDataParallel``, ``fully_shard`` or ``torch.compile`` made of it.
        loss: What is measured, such as ``L2InvarianceLoss(group)``.
        weight: The factor of the loss: a number; a schedule, a callable from the number of penalised forwards so far;
            or an ``InvarianceConstraint`` of this ``loss``, which finds the factor by itself.
        loss_scale: The factor that the loop puts on its own loss: a number or a callable without arguments.
        inputs: The name of the argument of the model's ``forward`` that the group acts on. None takes the first
            floating-point tensor, or for ``OnKeys`` the first mapping, tuple or list of tensors.
        outputs: Takes what the model returns to the logits that are compared, such as ``lambda out: out[0]``. None
            takes a tensor as it is, and the ``logits`` of anything that has them.

    Returns:
        The handle: ``.value`` is the last penalty, ``.remove()`` takes the penalty away, and as a context manager it
        lasts for the block.

    Raises:
        TypeError: An argument is not of the type above. The forward raises it where the model's arguments hold no
            data or its return value no logits.
        ValueError: The model or a part of it is regularised already, a number is out of range, ``forward`` has no
            argument ``inputs``, or the constraint is of another loss. The forward raises it as ``InvarianceLoss`` does.
        RuntimeError: The forward raises it where the outputs carry no gradient: a penalty would have no effect.

    Warns:
        UserWarning: Once, where a ``GradScaler`` is in use and ``loss_scale`` was not given.

    Source: Moskalev et al. (2023), eq. (4).

    Example:
        >>> import torch.nn.functional as F
        >>> from invreg import CyclicRotation, L2InvarianceLoss
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> handle = regularize(model, L2InvarianceLoss(CyclicRotation(4)), weight=0.1)
        >>> loss = F.cross_entropy(model(torch.randn(5, 1, 8, 8)), torch.tensor([0, 1, 2, 3, 4]))  # the loop's own line
        >>> loss.backward()  # the gradient of loss + 0.1 * invariance
        >>> handle.value > 0
        tensor(True)
        >>> handle.remove()
    """
    return Regularization(model, loss, weight, loss_scale=loss_scale, inputs=inputs, outputs=outputs)


class Regularization:
    """A penalty on a model's training-mode forwards. Made by ``regularize``, which documents it.

    Attributes:
        value: The last penalty, which is what the loop would have added to its loss: scalar, without gradient, float32
            or wider. None before the first.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: InvarianceLoss,
        weight: float | Callable[[int], float] | InvarianceConstraint,
        *,
        loss_scale: float | Callable[[], float],
        inputs: str | None,
        outputs: Callable[[Any], Tensor] | None,
    ) -> None:
        if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
            raise TypeError(
                f"model must be a torch.nn.Module that takes hooks, so regularise it before you script it: got "
                f"{type(model).__name__}. For any other callable, add the loss in the loop: loss + weight * "
                "invariance(model, x, y)."
            )
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module  # whose forwards then are more calls within one forward of the wrapper
        _check_settings(loss, weight, loss_scale, outputs)
        for name, part in model.named_modules():
            if any(
                isinstance(getattr(hook, "__self__", None), Regularization) for hook in part._forward_hooks.values()
            ):
                raise ValueError(
                    f"{f'The part {name!r} of the model' if name else 'The model'} is regularised already: remove() "
                    "that first. For two groups, take their product or add a second loss in the loop."
                )
        self.loss = loss
        self.weight = weight
        self.loss_scale = loss_scale
        self.value: Tensor | None = None
        self._data = DataArgument(model, inputs, several=isinstance(loss.group, OnKeys))
        self._logits = logits_of if outputs is None else outputs
        self._forwards = 0
        self._weight = Asked(self._next_weight)
        self._scale = Asked(loss_scale) if callable(loss_scale) else loss_scale
        self._entered: dict[int, _Arguments] = {}
        """What the forward of each thread was called with, before other hooks of the model's changed that."""
        self._measuring: set[int] = set()
        """Threads whose forward is one that measures."""
        self._looked_for_scaler = loss_scale != 1.0
        self._hooks = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True),
            model.register_forward_hook(self._leave, with_kwargs=True),
        ]

    def remove(self) -> None:
        """Takes the penalty away from later forwards. A step that is under way keeps it."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"Regularization({self.loss!r}, weight={self.weight!r}, loss_scale={self.loss_scale!r})"

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model's forward."""
        if self._is_due(model):
            self._entered[_thread()] = args, kwargs

    def _leave(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> Any:
        """After the model's forward: measures, and ties the penalty to what the model returns."""
        if not self._is_due(model):
            return None
        args, kwargs = self._entered.pop(_thread(), (args, kwargs))
        call = Call(model, args, kwargs, self._data.key(args, kwargs), self._logits)
        outputs = checked_outputs(self._logits(returned), len(first_tensor(call.data)))
        if not outputs.requires_grad:
            raise RuntimeError(
                f"The outputs of {type(model).__name__} carry no gradient, so that a penalty on them has no effect: "
                "unfreeze a parameter, return the outputs without detach() or argmax(), or remove() the penalty."
            )
        penalty = self._penalty(call, outputs)
        self.value = penalty.detach()
        if not penalty.requires_grad:  # an error function without gradient
            return None
        if isinstance(self._scale, Asked):
            penalty = self._scale(penalty) * penalty
        elif self._scale != 1.0:
            penalty = self._scale * penalty
        look = not self._looked_for_scaler and not torch.compiler.is_compiling() and not _is_mapped(penalty)
        return _tied(returned, penalty, self._look_for_scaler if look else None)

    def _penalty(self, call: Call, outputs: Tensor) -> Tensor:
        """What the loop would have to add to its loss."""
        self._measuring.add(_thread())
        try:
            if isinstance(self.weight, InvarianceConstraint):
                penalty: Tensor = self.weight(call, call.data, outputs)
                return penalty
            error: Tensor = self.loss(call, call.data, outputs)
        finally:
            self._measuring.remove(_thread())
        return (self._weight(error) if callable(self.weight) else self.weight) * error

    def _next_weight(self) -> float:
        """What the schedule says at this forward."""
        assert callable(self.weight)
        self._forwards += 1
        weight: float = self.weight(self._forwards - 1)
        return weight

    def _is_due(self, model: nn.Module) -> bool:
        """Whether the forward that this thread is in is one of a training, and none that measures."""
        return model.training and torch.is_grad_enabled() and _thread() not in self._measuring

    def _look_for_scaler(self, gradient: Tensor | None) -> None:
        """At the first backward: warns where a loss scaler is in use, whose scale the penalty does not get."""
        if self._looked_for_scaler or gradient is None:  # of an output that the loop does not use
            return
        self._looked_for_scaler = True
        if not _has_scaler(gradient):
            return
        gc.collect()  # of a loop that has ended, the scaler may still lie about
        if _has_scaler(gradient):
            warnings.warn(
                "A GradScaler is in use, which scales the loop's loss but not the penalty that regularize() adds: pass "
                "loss_scale=scaler.get_scale, or, if the scaler is for another model, loss_scale=lambda: 1.0.",
                stacklevel=2,
            )


_SCALED = 0.1
"""Of a scale, how much the absolute gradients of scaled outputs add up to at least, in an untrained classifier."""


def _has_scaler(gradient: Tensor) -> bool:
    """Whether there is a loss scaler by which outputs with this gradient may have been scaled."""
    size = float(gradient.detach().abs().sum())
    scalers = (found for found in gc.get_objects() if issubclass(type(found), torch.amp.GradScaler))
    return any(scaler.is_enabled() and size >= _SCALED * scaler.get_scale() for scaler in scalers)


_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _thread() -> int:
    """Names the thread; the compiler, which knows no threads, is one."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _is_mapped(tensor: Tensor) -> bool:
    """Whether a transform of ``torch.func`` is at work, which gradients are no numbers for."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


class _Tie(torch.autograd.Function):
    """Copies of outputs whose gradient is also that of a penalty: 1, whatever becomes of the outputs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(penalty: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.clone() for output in outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.of_penalty = {"dtype": inputs[0].dtype, "device": inputs[0].device}

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return torch.ones((), **ctx.of_penalty), *gradients


def _tied(returned: Any, penalty: Tensor, watch: Callable[[Tensor | None], None] | None) -> Any:
    """What a model returned, with a penalty that sends its gradient as soon as any of it gets one, and once only.

    ``watch`` is shown the gradients that the loop sends.
    """
    found: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            found[id(tensor)] = tensor
        return tensor

    map_nested(note, returned)
    tied = _Tie.apply(penalty, *found.values())  # type: ignore[no-untyped-call]  # it has no types in torch
    for tensor in tied if watch else ():
        tensor.register_hook(watch)
    copies = dict(zip(found, tied, strict=True))
    return map_nested(lambda tensor: copies.get(id(tensor), tensor), returned)


def _check_settings(loss: object, weight: object, loss_scale: object, outputs: object) -> None:
    if not isinstance(loss, InvarianceLoss):
        raise TypeError(
            f"loss must be an InvarianceLoss, e.g. L2InvarianceLoss(group): got {loss!r}. An InvarianceConstraint is "
            "a weight: regularize(model, constraint.loss, constraint)."
        )
    if isinstance(weight, InvarianceConstraint):
        if weight.loss is not loss:
            raise ValueError(
                "The constraint must be one of the loss that is given: regularize(model, constraint.loss, constraint)."
            )
    elif not callable(weight):
        _check_number("weight", weight, least="0 or more", holds=lambda value: 0 <= value < inf)
    if not callable(loss_scale):
        _check_number("loss_scale", loss_scale, least="above 0", holds=lambda value: 0 < value < inf)
    if not (outputs is None or callable(outputs)):
        raise TypeError(f"outputs must be a callable, e.g. lambda out: out[0]: got {outputs!r}.")


def _check_number(name: str, value: object, *, least: str, holds: Callable[[float], bool]) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number or a callable that returns one: got {value!r}.")
    if not holds(float(value)):
        raise ValueError(f"{name} must be a finite number, {least}: got {value!r}.")
