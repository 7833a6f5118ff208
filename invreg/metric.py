"""Which number of the invariance does my training loop log?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from invreg.functional import Model
from invreg.groups.batch import Batch, first_tensor
from invreg.losses import InvarianceLoss

try:
    from torchmetrics import Metric
except ModuleNotFoundError as error:
    raise ImportError('invreg.metric needs torchmetrics: python -m pip install "invreg[metrics]"') from error

__all__ = ["InvarianceError"]


class InvarianceError(Metric):
    r"""The mean invariance error over all samples that were seen, as a metric of torchmetrics.

    It is what the loss would return for all samples in one batch, up to rounding: the sums are kept in float64 (where
    a device has none, such as MPS, call ``metric.set_dtype(torch.float32)`` first) and are weighted by the number of
    samples, so that a smaller last batch does not count for more. Sums of several processes are added.

    No gradient is recorded and the model's mode stays as it is: put it into eval mode, as for any metric, so that
    dropout and batch normalisation do not add their own noise. For the error per element, the worst samples and
    confidence intervals, see ``measure_invariance``.

    Args:
        loss: What is measured, such as ``L2InvarianceLoss(group)``. With ``samples=k`` the elements are drawn from its
            ``rng``, anew for each batch.

    Raises:
        TypeError: ``loss`` is no ``InvarianceLoss``.

    Example:
        >>> from invreg import Flip, L2InvarianceLoss
        >>> from invreg.metric import InvarianceError
        >>> metric = InvarianceError(L2InvarianceLoss(Flip()))
        >>> metric.update(lambda x: x, torch.tensor([[0.0, 2.0]]))
        >>> metric.update(lambda x: x, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
        >>> metric.compute()  # of the errors 4, 0 and 1
        tensor(1.6667, dtype=torch.float64)
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    total: Tensor
    count: Tensor

    def __init__(self, loss: InvarianceLoss) -> None:
        super().__init__()
        if not isinstance(loss, InvarianceLoss):
            raise TypeError(f"loss must be an InvarianceLoss, e.g. L2InvarianceLoss(group): got {loss!r}.")
        self.loss = loss
        for name in ("total", "count"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, model: Model, inputs: Batch, outputs: Tensor | None = None) -> None:
        """Measures the model on a batch, as the loss does; see ``InvarianceLoss.forward``."""
        with torch.no_grad():
            error = self.loss(model, inputs, outputs)
        rows = len(first_tensor(inputs))
        self.total += rows * error.to(self.total)
        self.count += rows

    def compute(self) -> Tensor:
        """The mean over all samples: a scalar, NaN where there are none."""
        return self.total / self.count

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> nn.Module:
        """Moves to a device only, as ``.to(torch.bfloat16)`` on what holds the metric would spoil the sums."""
        if not self._dtype_convert:
            return super()._apply(lambda tensor: tensor.to(fn(tensor).device), exclude_state)
        return super()._apply(fn, exclude_state)
