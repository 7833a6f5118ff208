"""How is a layer made invariant?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from invreg.groups import FiniteGroup
from invreg.groups.batch import Batch, first_tensor, map_tensors

__all__ = ["GroupPooling", "Reduction"]

Reduction = Callable[[Tensor], Tensor]
"""Takes outputs over an orbit, ``(order, N, ...)``, to ``(N, ...)``; their order along axis 0 must not matter."""


def _largest(orbit: Tensor) -> Tensor:
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if tracing or not (orbit.requires_grad and torch.is_grad_enabled()):
        return orbit.amax(0)
    largest: Tensor = _Largest.apply(orbit)  # type: ignore[no-untyped-call]  # torch's own
    return largest


_REDUCTIONS: dict[str, Reduction] = {"max": _largest, "mean": lambda orbit: orbit.mean(0)}


class GroupPooling(nn.Module):
    r"""Any layer made invariant: it is applied to the whole orbit of its input and the results are pooled.

    .. math:: y(x) = \max_{g \in G} \ell(gx)

    Exactly invariant for every exact group, since the orbit of ``gx`` is that of ``x`` in another order. It costs as
    much as ``group.order`` such layers.

    Args:
        layer: The layer, from inputs ``(M, ...)`` to outputs ``(M, ...)``.
        group: A finite group that acts on the inputs.
        reduction: How to pool: ``"max"``, ``"mean"`` or a callable from ``(order, N, ...)`` to ``(N, ...)`` that
            does not depend on the order along axis 0.

    Raises:
        TypeError: ``group`` is no finite group.
        ValueError: ``reduction`` is unknown.

    Source: The weight-tying baseline (WT) of Moskalev et al. (2023), section 4.1.

    Example:
        >>> import torch
        >>> from invreg import Flip
        >>> pooled = GroupPooling(torch.nn.Linear(3, 2), Flip())
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> bool((pooled(x) == pooled(x.flip(-1))).all())
        True
    """

    def __init__(
        self, layer: nn.Module, group: FiniteGroup, reduction: Literal["max", "mean"] | Reduction = "max"
    ) -> None:
        super().__init__()
        check_pooling(group, reduction)
        self.layer = layer
        self.group = group
        self.reduction = reduction

    def forward(self, x: Batch) -> Tensor:
        """Pools the layer's outputs over the orbit.

        Args:
            x: Shape ``(N, ...)``, or what else the group acts on and the layer takes (``OnKeys``).

        Returns:
            Shape ``(N, ...)``: the shape of the layer's outputs.

        Raises:
            ValueError: The group cannot act on inputs of this shape, or the layer returned another number of rows.
        """
        outputs = self.layer(expand(x, self.group))
        return pool(outputs, self.group, self.reduction, rows=self.group.order * len(first_tensor(x)))

    def extra_repr(self) -> str:
        """The settings, for ``print``."""
        return f"{self.group!r}, reduction={self.reduction!r}"


def check_pooling(group: FiniteGroup, reduction: str | Reduction) -> None:
    if not isinstance(group, FiniteGroup):
        raise TypeError(f"Pooling runs over all elements of a FiniteGroup: got {group!r}.")
    if not (callable(reduction) or (isinstance(reduction, str) and reduction in _REDUCTIONS)):
        raise ValueError(f"reduction must be one of {list(_REDUCTIONS)} or a callable: got {reduction!r}.")


def expand(x: Batch, group: FiniteGroup) -> Batch:
    return map_tensors(lambda orbit: orbit.flatten(0, 1), group.orbit(x))


def pool(outputs: Tensor, group: FiniteGroup, reduction: str | Reduction, rows: int | None = None) -> Tensor:
    """Pools outputs that have ``order`` rows per sample; ``rows`` in all, where that is known."""
    fits = isinstance(outputs, Tensor) and outputs.ndim > 0 and outputs.shape[0] % group.order == 0
    if not fits or rows not in (None, outputs.shape[0]):
        came = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"The pooled layer must return one tensor, with a row for each of its input's, {group.order} per sample: "
            f"got {came}."
        )
    return reduced(outputs.reshape(group.order, outputs.shape[0] // group.order, *outputs.shape[1:]), reduction)


def reduced(orbit: Tensor, reduction: str | Reduction) -> Tensor:
    """Pools outputs over an orbit, ``(order, N, ...)``."""
    return reduction(orbit) if callable(reduction) else _REDUCTIONS[reduction](orbit)


class _Largest(torch.autograd.Function):
    """``orbit.amax(0)`` with the same derivatives, in fewer passes over the orbit."""

    generate_vmap_rule = True

    @staticmethod
    def forward(orbit: Tensor) -> Tensor:
        return orbit.amax(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        reached = _reached(*ctx.saved_tensors)
        return reached * (gradient / reached.sum(0))

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        reached = _reached(*ctx.saved_tensors)
        return (reached * tangent).sum(0) / reached.sum(0)


def _reached(orbit: Tensor, largest: Tensor) -> Tensor:
    """One where the largest is reached, else zero; a number, since truth values are slow to sum."""
    return (orbit == largest).to(orbit.dtype)
