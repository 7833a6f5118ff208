"""Where does the model look?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, exp
from typing import Any, Literal

import torch
from torch import Tensor

from invreg.functional import Model

__all__ = ["Attribution", "MapMethod", "SaliencyMap", "completeness_gap", "saliency_similarity"]

MapMethod = Callable[[Model, Tensor, "Tensor | None"], Tensor]
"""Takes a model, inputs ``(N, ...)`` and target classes ``(N,)`` (None: a single logit); returns maps ``(N, ...)``."""

Attribution = Callable[[Model, Tensor, "Tensor | None"], Tensor]
"""As ``MapMethod``, but returns signed attributions in the shape of the inputs."""

_MEMORY = {"cpu": 2**24, "accelerator": 2**30}
"""How many bytes the rows of one forward and backward of integrated gradients take, about."""

_COPIES = 5
"""How many copies of its inputs captum makes: scaled, joined, their gradients, those weighted, and summed."""

_ROWS = 64
"""How many rows a forward takes where the bytes cannot be counted."""

_FEW = 16
"""How many rows are not worth the two forwards that count the bytes."""


@dataclass(frozen=True)
class SaliencyMap:
    r"""How much each place of an input matters to the target class: attributions, folded into a map.

    The absolute attributions are summed over channels, cut at a share of their maximum and blurred by a Gaussian
    whose ends wrap around, so that blurring commutes with turns, mirrors and cyclic shifts. Two maps of an exactly
    invariant model then agree over the whole orbit. For a group that permutes positions in other ways there are no
    neighbours to blur with: set ``kernel_size=1``.

    Args:
        steps: Points at which integrated gradients evaluate the gradient. Not used with ``attribution``.
        cut: ``"above"`` sets what is below ``threshold`` times the map's maximum to zero; ``"clip"`` limits the map
            there; ``"quantile"`` sets what is below the map's ``threshold``-quantile to zero; None cuts nothing.
        threshold: Where to cut, between 0 and 1.
        kernel_size: Width of the Gaussian in positions, odd; 1 does not blur.
        sigma: Standard deviation of the Gaussian in positions.
        channel_dim: The axis to sum over, which then has size 1. None stands for axis 1 of inputs with four or more
            axes (images, volumes), and sums over nothing for others.
        sum_signed: Whether attributions are summed over channels as they are, and made positive then. So must be those
            of channels that a group mixes, such as the coordinates of points under ``SpatialRotation``: it moves the
            attributions of the coordinates, but not their sum.
        attribution: What to use in place of integrated gradients: an attribution class of captum, or a callable
            ``(model, inputs, target)`` that returns attributions in the shape of ``inputs``; the way to another
            baseline or quadrature.
        internal_batch_size: Most rows that one forward of integrated gradients takes. None: as many as keep 16 MiB for
            the backward on a CPU, which its cache likes, or 1 GiB on an accelerator; two forwards, of two and of three
            rows, find it out (but for 16 rows or fewer). Not used with ``attribution``.

    Raises:
        ValueError: A setting is outside its range.

    Source: Moskalev et al. (2023), section 4.1: integrated gradients from a zero baseline, ``threshold`` 0.9,
    ``kernel_size`` 3, ``sigma`` 1.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> SaliencyMap()(model, torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4])).shape
        torch.Size([5, 1, 8, 8])
    """

    steps: int = 50
    cut: Literal["above", "clip", "quantile"] | None = "above"
    threshold: float = 0.9
    kernel_size: int = 3
    sigma: float = 1.0
    channel_dim: int | None = None
    sum_signed: bool = False
    attribution: Attribution | type[Any] | None = None
    internal_batch_size: int | None = None

    def __post_init__(self) -> None:
        for name, holds, need in (
            ("steps", isinstance(self.steps, int) and self.steps >= 1, "a whole number, 1 or more"),
            ("cut", self.cut in (None, *_CUTS), f"None or one of {sorted(_CUTS)}"),
            ("threshold", 0 <= self.threshold <= 1, "between 0 and 1"),
            ("kernel_size", self.kernel_size >= 1 and self.kernel_size % 2 == 1, "odd and positive"),
            ("sigma", self.sigma > 0, "positive"),
            ("channel_dim", self.channel_dim != 0, "another axis than the batch's"),
            ("internal_batch_size", self.internal_batch_size is None or self.internal_batch_size >= 1, "1 or more"),
        ):
            if not holds:
                raise ValueError(f"SaliencyMap: {name} must be {need}: got {getattr(self, name)!r}.")

    def __call__(self, model: Model, inputs: Tensor, target: Tensor | None) -> Tensor:
        """Maps a batch.

        Args:
            model: Any callable from inputs to logits ``(N, C)`` or ``(N,)``; some captum methods need a module.
            inputs: Shape ``(N, ...)``, floating point.
            target: Class whose logit is explained, for each sample: ``(N,)``, int64. None for a single logit.

        Returns:
            Non-negative maps with the inputs' axes, the channel axis of size 1; float32 or wider.

        Raises:
            ValueError: The attribution has another shape than the inputs, or ``channel_dim`` is their batch axis.
        """
        return self.fold(self.attribute(model, inputs, target))

    def attribute(self, model: Model, inputs: Tensor, target: Tensor | None) -> Tensor:
        """The attributions before they are folded into a map.

        Args:
            model: As in ``__call__``; so are the others.
            inputs: Shape ``(N, ...)``.
            target: Shape ``(N,)``, or None.

        Returns:
            Signed attributions in the shape of ``inputs``, without gradient.

        Raises:
            ValueError: ``attribution`` returned something else.
        """
        with torch.inference_mode(mode=False), torch.enable_grad():  # gradients are wanted whatever the caller's mode
            inputs = inputs.detach().clone()
            if self.attribution is None:
                attributions = _integrated_gradients(model, inputs, target, self.steps, self.internal_batch_size)
            elif isinstance(self.attribution, type):
                attributions = self.attribution(model).attribute(inputs.requires_grad_(), target=target)
            else:
                attributions = self.attribution(model, inputs.requires_grad_(), target)
        if not isinstance(attributions, Tensor) or attributions.shape != inputs.shape:
            came = f"shape {tuple(attributions.shape)}" if isinstance(attributions, Tensor) else type(attributions)
            raise ValueError(
                f"attribution must return one tensor in the inputs' shape {tuple(inputs.shape)}: got {came}."
            )
        return attributions.detach()

    def fold(self, attributions: Tensor) -> Tensor:
        """Makes maps from attributions: absolute values, sum over channels, cut, blur.

        Args:
            attributions: Shape ``(N, ...)``.

        Returns:
            Maps, as from ``__call__``; NaN stays NaN.

        Raises:
            ValueError: ``channel_dim`` is the batch axis or not an axis.
        """
        channel_dim = 1 if self.channel_dim is None and attributions.ndim >= 4 else self.channel_dim
        maps = attributions if self.sum_signed else attributions.abs()
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        if channel_dim is not None:
            if channel_dim % maps.ndim == 0 or not -maps.ndim <= channel_dim < maps.ndim:
                raise ValueError(
                    f"SaliencyMap: channel_dim must be an axis of the inputs other than the batch's: got {channel_dim} "
                    f"for shape {tuple(maps.shape)}."
                )
            maps = maps.sum(channel_dim, keepdim=True)
        maps = maps.abs()
        if self.cut is not None:
            maps = _CUTS[self.cut](maps, self.threshold)
        spatial = [dim for dim in range(1, maps.ndim) if channel_dim is None or dim != channel_dim % maps.ndim]
        return _blur(maps, spatial, self.kernel_size, self.sigma)


def saliency_similarity(reference: Tensor, realigned: Tensor) -> Tensor:
    r"""How much two saliency maps agree: the cosine of the angle between them.

    .. math:: s(x, g) = \frac{\langle m(x),\, g^{-1} m(gx) \rangle}{\lVert m(x) \rVert \, \lVert g^{-1} m(gx) \rVert}

    Args:
        reference: Maps at ``x``, shape ``(N, ...)``, floating point.
        realigned: Maps at ``gx`` after ``group.act_on_map(g^-1, ...)``, same shape.

    Returns:
        Shape ``(N,)``, float32 or wider, between 0 and 1 for maps without negative values. Two maps that are zero
        everywhere agree: 1. One such map agrees with no other: 0.

    Raises:
        ValueError: The shapes differ.

    Source: Moskalev et al. (2023), eq. (3), per sample and element.

    Example:
        >>> saliency_similarity(torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([0.6000])
    """
    if reference.shape != realigned.shape:
        raise ValueError(f"Maps must have one shape: got {tuple(reference.shape)} and {tuple(realigned.shape)}.")
    dtype = torch.promote_types(reference.dtype, torch.float32)
    a, b = (_unit(_rows(maps.to(dtype))) for maps in (reference, realigned))
    both_zero = (a == 0).all(1) & (b == 0).all(1)
    return torch.where(both_zero, torch.ones_like(a[:, 0]), (a * b).sum(1))


def completeness_gap(model: Model, inputs: Tensor, attributions: Tensor, target: Tensor | None) -> Tensor:
    r"""How far attributions are from adding up to what they explain, from a zero baseline.

    .. math:: \Bigl| \sum_i a_i(x) - (f(x) - f(0)) \Bigr| \quad\text{and}\quad \lvert f(x) - f(0) \rvert

    Args:
        model: Any callable from inputs to logits.
        inputs: Shape ``(N, ...)``.
        attributions: Same shape as ``inputs``.
        target: Class of each sample, ``(N,)``, int64; None for a single logit.

    Returns:
        Shape ``(2, N)``: the gap, and the change of the logit that it is to be compared with. Unit: logits.

    Source: Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks" (2017), section 3.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> completeness_gap(lambda x: 3 * x, x, torch.tensor([[3.0, 0.5]]), torch.tensor([0]))
        tensor([[0.5000],
                [3.0000]])
    """
    with torch.no_grad():
        at_input, at_zero = (_target_logit(model(x), target) for x in (inputs, torch.zeros_like(inputs)))
    change = at_input - at_zero
    return torch.stack([(_rows(attributions).sum(1) - change).abs(), change.abs()])


def _target_logit(outputs: Tensor, target: Tensor | None) -> Tensor:
    return outputs.flatten() if target is None else outputs.gather(1, target[:, None]).squeeze(1)


def _integrated_gradients(
    model: Model, inputs: Tensor, target: Tensor | None, steps: int, internal_batch_size: int | None
) -> Tensor:
    from captum.attr import IntegratedGradients

    at_once = internal_batch_size or _rows_within_memory(model, inputs, steps)
    parts = []
    # captum warns where a batch is larger than its internal one, so that a larger one comes to it in parts.
    for start in range(0, len(inputs), at_once):
        rows = slice(start, start + at_once)
        method = IntegratedGradients(partial(_summed_logits, model, None if target is None else target[rows]))
        parts.append(method.attribute(inputs[rows], n_steps=steps, internal_batch_size=at_once))
    return torch.cat(parts)


def _summed_logits(model: Model, target: Tensor | None, rows: Tensor) -> Tensor:
    """The sum over ``rows``, which hold the samples of ``target`` again for each step; one backward for all of them.

    captum would take the rows apart to start a backward at each.
    """
    classes = None if target is None else target.repeat(len(rows) // len(target))
    return _target_logit(model(rows), classes).sum()[None]


def _rows_within_memory(model: Model, inputs: Tensor, steps: int) -> int:
    """How many rows a forward and backward can take within the budget, by what a forward keeps for its backward."""
    if len(inputs) * steps <= _FEW:
        return _FEW
    try:
        few, many = (_bytes_kept(model, torch.cat([inputs[:1]] * rows)) for rows in (2, 3))
    except RuntimeError:  # of the model, which raises it again, or of torch.func, under which nothing can be counted
        return _ROWS
    one = many - few + _COPIES * inputs[:1].nbytes  # the difference leaves out weights
    return max(1, _MEMORY["cpu" if inputs.device.type == "cpu" else "accelerator"] // one)


def _bytes_kept(model: Model, rows: Tensor) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(rows.requires_grad_())  # alive until all is counted, so that no address comes twice
    del outputs
    return sum(kept.values())


def _rows(maps: Tensor) -> Tensor:
    return maps.flatten(1) if maps.ndim > 1 else maps[:, None]


def _per_sample(values: Tensor, maps: Tensor) -> Tensor:
    return values.view(-1, *[1] * (maps.ndim - 1))


def _maximum(maps: Tensor) -> Tensor:
    return _per_sample(_rows(maps).amax(1), maps)


def _keep_above(maps: Tensor, threshold: float) -> Tensor:
    return torch.where(maps < threshold * _maximum(maps), 0, maps)  # said so that NaN stays


def _clip(maps: Tensor, threshold: float) -> Tensor:
    return torch.minimum(maps, threshold * _maximum(maps))


def _keep_above_quantile(maps: Tensor, threshold: float) -> Tensor:
    flat = _rows(maps)
    rank = max(ceil(threshold * flat.shape[1]), 1)
    return torch.where(maps < _per_sample(flat.kthvalue(rank, 1).values, maps), 0, maps)


_CUTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "above": _keep_above,
    "clip": _clip,
    "quantile": _keep_above_quantile,
}


def _blur(maps: Tensor, dims: list[int], kernel_size: int, sigma: float) -> Tensor:
    """A separable Gaussian that wraps around; it treats both directions alike to the last bit."""
    radius = kernel_size // 2
    weights = [exp(-(distance**2) / (2 * sigma**2)) for distance in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    for dim in dims:
        sides = [w / total * (maps.roll(d, dim) + maps.roll(-d, dim)) for d, w in enumerate(weights) if d]
        maps = sum(sides, weights[0] / total * maps)
    return maps


def _unit(vectors: Tensor) -> Tensor:
    """Rows scaled to length 1, zero rows left as they are; scaled by the largest entry first against underflow."""
    vectors = vectors / vectors.abs().amax(1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    lengths = vectors.square().sum(1, keepdim=True).sqrt()
    return vectors / lengths.clamp_min(torch.finfo(vectors.dtype).tiny)
