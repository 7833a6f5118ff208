"""How do I train on the whole orbit, when f(gx) is computed anyway?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from invreg.functional import Model, checked_inputs, checked_outputs
from invreg.groups.batch import Batch, first_tensor, map_tensors, tensors
from invreg.losses import InvarianceLoss

__all__ = ["OrbitLoss", "orbit_loss"]


def orbit_loss(criterion: Callable[[Tensor, Batch], Tensor], loss: InvarianceLoss) -> OrbitLoss:
    """Takes the task's loss over the orbit that an invariance loss evaluates the model on, free of charge.

    It is data augmentation without a further forward: the outputs that are compared with those at ``x`` are also held
    against the targets. Where ``loss`` takes all elements, the task's loss is the exact mean over the orbit, where
    usual augmentation sees one random element of it per step; with ``samples=k``, it is the mean over ``x`` and ``k``
    elements. The targets must be such that the group does not change them: classes, not segmentations.

    In the paper's experiment it makes nothing more accurate: beside a regulariser it changes nothing that shows, and
    alone it overfits sooner than random elements do (``docs/results.md``).

    Args:
        criterion: The task's loss, ``(outputs, targets) -> value``, such as ``torch.nn.CrossEntropyLoss()``. It is
            called once, with the outputs at ``x`` and then those at each ``gx`` as rows of one batch and the targets
            repeated, so that a mean is one over elements and samples, and a sum grows by the number of elements.
        loss: The invariance loss; of each call and of the whole batch, as ``fraction`` and ``every`` would leave
            nothing for the task.

    Returns:
        The module that computes both, ``(model, inputs, targets, outputs=None) -> (task, invariance)``.

    Raises:
        TypeError: ``criterion`` is no callable or ``loss`` no ``InvarianceLoss``.
        ValueError: ``loss`` has a ``fraction`` below 1 or an ``every`` above 1.

    Example:
        >>> from invreg import CyclicRotation, L2InvarianceLoss
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> objective = orbit_loss(torch.nn.CrossEntropyLoss(), L2InvarianceLoss(CyclicRotation(4)))
        >>> x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4])
        >>> task, invariance = objective(model, x, y)
        >>> (task + 0.1 * invariance).backward()
    """
    return OrbitLoss(criterion, loss)


class OrbitTerms(NamedTuple):
    """What ``OrbitLoss`` returns.

    Attributes:
        task: The criterion's value over the orbit.
        invariance: The invariance loss, scalar.
    """

    task: Tensor
    invariance: Tensor


class OrbitLoss(nn.Module):
    """A task's loss over the orbit, and the invariance loss, by one forward. Made by ``orbit_loss``.

    Args:
        criterion: As for ``orbit_loss``.
        loss: As for ``orbit_loss``.

    Raises:
        TypeError: As for ``orbit_loss``.
        ValueError: As for ``orbit_loss``.

    Example:
        >>> from invreg import Flip, L2InvarianceLoss
        >>> objective = OrbitLoss(torch.nn.MSELoss(), L2InvarianceLoss(Flip()))
        >>> objective(lambda x: x[:, :1], torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0]]))
        OrbitTerms(task=tensor(1.), invariance=tensor(2.))
    """

    def __init__(self, criterion: Callable[[Tensor, Batch], Tensor], loss: InvarianceLoss) -> None:
        super().__init__()
        if not callable(criterion):
            raise TypeError(
                f"criterion must be a callable (outputs, targets) -> value, e.g. CrossEntropyLoss(): got {criterion!r}."
            )
        if not isinstance(loss, InvarianceLoss):
            raise TypeError(f"loss must be an InvarianceLoss, e.g. L2InvarianceLoss(group): got {loss!r}.")
        if loss.fraction < 1 or loss.every > 1:
            raise ValueError(
                "loss must measure the whole batch at each call, which the task's loss is taken over: got "
                f"fraction={loss.fraction}, every={loss.every}. Leave them out; samples= makes it cheaper."
            )
        self.criterion = criterion
        self.loss = loss

    def forward(self, model: Model, inputs: Batch, targets: Batch, outputs: Tensor | None = None) -> OrbitTerms:
        """Measures the model on a batch.

        Args:
            model: As for ``InvarianceLoss``.
            inputs: As for ``InvarianceLoss``.
            targets: A tensor ``(N, ...)``, or a mapping, tuple or list of such.
            outputs: As for ``InvarianceLoss``.

        Returns:
            The pair ``(task, invariance)``: what the criterion returns over the outputs at ``x`` and at all ``gx``,
            and what ``loss(model, inputs, outputs)`` returns.

        Raises:
            TypeError: As for ``InvarianceLoss``, or ``targets`` hold something else than tensors.
            ValueError: As for ``InvarianceLoss``, or there is not one target per input.
        """
        checked_inputs(inputs)
        rows = len(first_tensor(inputs))
        _check_targets(targets, rows)
        if outputs is not None:
            checked_outputs(outputs, rows)
        if self.loss.group.order == 1:
            outputs = checked_outputs(model(inputs), rows) if outputs is None else outputs
            return OrbitTerms(self.criterion(outputs, targets), self.loss(model, inputs, outputs))
        outputs, transformed = self.loss._outputs(model, inputs, outputs)
        invariance = self.loss._mean_error(outputs, transformed)
        orbit = torch.cat([outputs[None], transformed])
        repeated = map_tensors(lambda t: t.expand(len(orbit), *t.shape).flatten(0, 1), targets)
        return OrbitTerms(self.criterion(orbit.flatten(0, 1), repeated), invariance)

    def extra_repr(self) -> str:
        """The criterion, for ``print``, where it is no module."""
        if isinstance(self.criterion, nn.Module):
            return ""
        return f"criterion={getattr(self.criterion, '__name__', repr(self.criterion))}"


def _check_targets(targets: Batch, rows: int) -> None:
    """Raises unless there is one target per row."""
    if not isinstance(targets, (Tensor, Mapping, tuple, list)) or (not isinstance(targets, Tensor) and not targets):
        raise TypeError(f"targets must be tensors of shape (N, ...), at least one: got {type(targets).__name__}.")
    for key, target in tensors(targets):
        at = "" if key is None else f" at {key!r}"
        if not isinstance(target, Tensor):
            raise TypeError(f"targets must be tensors of shape (N, ...): got {type(target).__name__}{at}.")
        if target.ndim == 0 or len(target) != rows:
            raise ValueError(f"targets must have one row per input, {rows}: got shape {tuple(target.shape)}{at}.")
