"""How much invariance do I want? A target instead of a weight."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from numbers import Real

import torch
from torch import Tensor, distributed, nn
from typing_extensions import Self

from invreg.functional import Model
from invreg.groups.batch import Batch
from invreg.losses import InvarianceLoss

__all__ = ["InvarianceConstraint"]

_MEMORY = 3.0  # steps over which errors are averaged: with 1, noise drives the multiplier, with 10, it comes late
_START, _LEAST, _MOST = 0.05, 1e-5, 1e5  # of the multiplier, in units of 1 / target
_BOUND = 1.0  # of the violation: a sudden large error must not raise the multiplier so far that the model collapses


class InvarianceConstraint(nn.Module):
    r"""An invariance loss with the weight that brings it to a target: ``loss + constraint(model, x, logits)``.

    .. math:: \min_\theta \; L(\theta) \quad \text{subject to} \quad e(\theta) \le \tau

    Instead of a weight one says which error is allowed. What is returned is the multiplier times the error: the weight
    of the regulariser is the Lagrange multiplier of the constraint, and it moves with each step of the training until
    the error is as large as the target. If the model keeps below the target by itself, the multiplier shrinks to
    practically nothing: the error then stays where the task puts it.

    Both may span decades, so the ascent is on the logarithm of the multiplier and by the relative violation, and it is
    damped by a proportional term, without which error and multiplier swing around each other:

    .. math::
        v_t = \operatorname{clip}\left(2\,\frac{e_t - \tau}{e_t + \tau}, \pm 1\right), \qquad
        \log \mu_{t+1} = \log \mu_t + \text{rate} \cdot v_t, \qquad
        \lambda_t = \mu_{t+1} \exp(\text{damping} \cdot v_t)

    The multiplier is never negative. It stays between 1e-5 and 1e5, in units of the task's loss, where the error is at
    the target, so that it finds back after the target was out of reach or did not matter. Scale a task whose loss is
    decades away from 1.

    The error on the batches of the training is lower than on other data, as any loss. To bring the error on held-out
    data to the target, measure it there now and then, such as after each epoch, and say so by ``calibrate``. The error
    still swings about the target from epoch to epoch, as that of a fixed weight does about its mean; it calms down
    where the learning rate ends low.

    The multiplier moves in training mode only, and only where gradients are recorded. Each call is one step; so are the
    calls between which gradients are accumulated. An error that is not finite is returned as it is, as by any loss,
    and leaves the multiplier alone; one more than ten times the average, or the target if that is larger, counts as ten
    times. In distributed training each rank sees other batches: the multiplier follows the mean of their errors and is
    the same on all ranks, each of which must call it at each step; the default process group is used.

    The state is kept in float32 whatever the module is converted to, and is saved in the ``state_dict``: a training
    goes on exactly where it was.

    Args:
        loss: What is constrained; its unit is that of the target.
        target: The largest error allowed, above 0.
        rate: How fast the multiplier follows: by which share it changes in one step for each unit of relative
            violation. The default suits trainings of thousands of steps: the multiplier settles in some of the first
            epochs and then hardly moves. A faster one comes nearer to the target from step to step, and costs
            accuracy: each rise of the multiplier pushes the model where the task must pull it back from.
        damping: How much of the violation the multiplier takes up at once. With 0 it swings; much of it costs accuracy
            as a fast rate does.

    Attributes:
        error: What is held against the target: the average error over the last few steps times the calibration;
            scalar, float32. NaN before the first step.
        multiplier: The weight at present, a scalar, float32. Unit: that of the task's loss over that of the error.

    Raises:
        TypeError: ``loss`` is no ``InvarianceLoss``, or a setting no number.
        ValueError: A number is not finite, ``target`` or ``rate`` are not above 0, ``damping`` is below 0, or ``loss``
            is not measured at each step.

    Source: Dual ascent: Boyd et al. (2011), "Distributed optimization and statistical learning via the alternating
        direction method of multipliers", section 2.1. Its damping by a proportional term: Stooke et al. (2020),
        "Responsive safety in reinforcement learning by PID Lagrangian methods".

    Example:
        >>> from invreg import CyclicRotation, L2InvarianceLoss
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> invariance = L2InvarianceLoss(CyclicRotation(4))
        >>> constraint = InvarianceConstraint(invariance, target=0.1)
        >>> x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4])
        >>> logits = model(x)
        >>> loss = torch.nn.functional.cross_entropy(logits, y) + constraint(model, x, logits)
        >>> loss.backward()

        And after each epoch, with other data than that of the training:

        >>> with torch.no_grad():
        ...     constraint.calibrate(invariance(model, torch.randn(5, 1, 8, 8)))
    """

    _integral: Tensor
    _error_sum: Tensor
    _error_count: Tensor
    _calibration: Tensor

    def __init__(self, loss: InvarianceLoss, target: float, *, rate: float = 0.01, damping: float = 0.2) -> None:
        super().__init__()
        if not isinstance(loss, InvarianceLoss):
            raise TypeError(f"loss must be an InvarianceLoss, e.g. L2InvarianceLoss(group): got {loss!r}.")
        if loss.every > 1:
            raise ValueError(
                f"loss must be measured at each step, which the multiplier follows: got every={loss.every}. Use "
                "every=1; what makes each step cheaper is fraction."
            )
        for name, value in {"target": target, "rate": rate, "damping": damping}.items():
            if not isinstance(value, Real):
                raise TypeError(f"{name} must be a number: got {value!r}.")
        for name, value in {"target": target, "rate": rate}.items():
            if not 0 < value < inf:
                raise ValueError(f"{name} must be a finite number above 0: got {value!r}.")
        if not 0 <= damping < inf:
            raise ValueError(f"damping must be a finite number, 0 or above: got {damping!r}.")
        self.loss = loss
        self.target = float(target)
        self.rate = float(rate)
        self.damping = float(damping)
        self.register_buffer("_integral", torch.tensor(_START / self.target, dtype=torch.float32))
        self.register_buffer("_error_sum", torch.tensor(0.0, dtype=torch.float32))
        self.register_buffer("_error_count", torch.tensor(0.0, dtype=torch.float32))
        self.register_buffer("_calibration", torch.tensor(1.0, dtype=torch.float32))

    @property
    def error(self) -> Tensor:
        """See ``InvarianceConstraint``."""
        return self._calibration * self._error_sum / self._error_count

    @property
    def multiplier(self) -> Tensor:
        """See ``InvarianceConstraint``."""
        return self._integral * (self.damping * self._violation()).exp()

    def forward(self, model: Model, inputs: Batch, outputs: Tensor | None = None) -> Tensor:
        """Measures the model on a batch, and lets the multiplier follow.

        Args:
            model: As for ``InvarianceLoss``.
            inputs: As for ``InvarianceLoss``.
            outputs: As for ``InvarianceLoss``.

        Returns:
            The multiplier times the error, a scalar of the error's dtype. No gradient flows through the multiplier.

        Raises:
            TypeError: As for ``InvarianceLoss``.
            ValueError: As for ``InvarianceLoss``.
        """
        error: Tensor = self.loss(model, inputs, outputs)
        if self.training and torch.is_grad_enabled():
            self._step(error.detach())
        return self.multiplier * error

    @torch.no_grad()
    def calibrate(self, error: float | Tensor) -> None:
        """Says which error was measured on held-out data, for the model as it is now.

        From then on the multiplier follows the error on the batches times what held-out data has more than these. As
        each measurement is noisy, the factor moves half of its way there, on a logarithmic scale. In distributed
        training, give each rank the same.

        Args:
            error: The mean on held-out data, measured as the loss does; a number or a scalar tensor. Before the first
                step of training, or if one of the errors is zero or not finite, nothing changes.

        Raises:
            ValueError: ``error`` is negative, or a tensor of several elements.
        """
        measured = torch.as_tensor(error).to(self._calibration)
        if measured.numel() != 1 or measured < 0:
            raise ValueError(f"error must be a single mean error, 0 or more: got {error!r}.")
        factor = (self._calibration * measured.reshape(()) * self._error_count / self._error_sum).sqrt()
        self._calibration.copy_(torch.where(factor.isfinite() & (factor > 0), factor, self._calibration))

    def extra_repr(self) -> str:
        """The settings, for ``print``."""
        return f"target={self.target}, rate={self.rate}, damping={self.damping}"

    def _violation(self) -> Tensor:
        """How far the error is from the target, relative to the mean of the two, bounded; 0 before it is known."""
        error = self.error
        violation = 2 * (error - self.target) / (error + self.target)
        return violation.clamp(-_BOUND, _BOUND).nan_to_num(nan=0.0)

    @torch.no_grad()
    def _step(self, error: Tensor) -> None:
        """Takes one batch's error into the average, and moves the multiplier."""
        if distributed.is_available() and distributed.is_initialized():
            error = error.clone()
            distributed.all_reduce(error)
            error = error / distributed.get_world_size()
        error = error.to(self._error_sum)
        known = error.isfinite()
        most = 10 * self.error.clamp_min(self.target) / self._calibration
        error = torch.minimum(error.clamp_min(0), most.nan_to_num(nan=inf))
        for average, value in ((self._error_sum, error), (self._error_count, torch.ones_like(error))):
            average.copy_(torch.where(known, average + (value - average) / _MEMORY, average))
        moved = self._integral * (self.rate * self._violation()).exp()
        moved = moved.clamp(_LEAST / self.target, _MOST / self.target)
        self._integral.copy_(torch.where(known, moved, self._integral))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the module as any other, but keeps the state in float32: steps are too small for half precision."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # it has no types in torch
        for name, state in before.items():
            now = self._buffers[name]
            if state is not None and now is not None and now.dtype != state.dtype:
                self._buffers[name] = state.to(now.device)
        return self
