"""What did invariance cost?

How much a model's outputs can still move with its inputs: the largest singular value of its input Jacobian, and those
of its weight matrices.
"""

from __future__ import annotations

from math import nan

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from invreg.functional import Model, checked_inputs, checked_outputs
from invreg.groups.transformations import device_of
from invreg.preserve import preserved

__all__ = ["jacobian_spectral_norm", "spectral_norms"]

_FEW_OUTPUTS = 32
"""Up to here the Gram matrix costs about as much time as the iteration, and asks less of the model."""

_STEPS_PER_CHECK = 4

_ONCE = (
    "The model must be one that torch.autograd can differentiate: got one that it cannot. Recurrent, on CUDA: call "
    "this under torch.backends.cudnn.flags(enabled=False). Checkpointed: set use_reentrant=False."
)

_TWICE = (
    "For that many outputs the model must be one that torch.autograd can differentiate twice: got one that it cannot. "
    "Pass exact=True, which takes one backward per output. Or, with attention: call this under "
    "torch.nn.attention.sdpa_kernel(SDPBackend.MATH); compiled: give the module that was compiled."
)


def jacobian_spectral_norm(
    model: Model,
    inputs: Tensor,
    *,
    exact: bool | None = None,
    steps: int = 300,
    rng: torch.Generator | None = None,
) -> Tensor:
    r"""How far a small change of the input can move the outputs, at most: the Jacobian's largest singular value.

    .. math:: \sigma(x) = \max_{\lVert v \rVert_2 = 1} \lVert J(x)\, v \rVert_2, \quad J = \frac{\partial f}{\partial x}

    For few outputs it comes from the Gram matrix :math:`J J^\top`, by one backward per output; memory grows with
    outputs times inputs. For many it comes from a Lanczos iteration on products with :math:`J` and :math:`J^\top`,
    which is power iteration that keeps its iterates, so that close or equal singular values do not delay it; memory
    grows with its steps times the inputs or outputs, whichever are fewer. Either way the batch takes one forward, and
    nothing is differentiated by the weights.

    The model is measured in eval mode, whatever mode it is in, and left as it was found. It must treat each sample by
    itself: one that normalises by statistics of the batch has no Jacobian per sample.

    Args:
        model: Any callable from inputs ``(N, ...)`` to outputs ``(N, C, ...)`` or ``(N,)``; all entries of one
            sample's outputs count alike. For probabilities in place of logits give ``lambda x: model(x).softmax(1)``.
        inputs: Shape ``(N, ...)``, floating point.
        exact: Whether to use the Gram matrix; None does up to 32 outputs per sample. The iteration needs a model that
            can be differentiated twice, the Gram matrix only once.
        steps: The most steps that the iteration may take. It never takes more than there are inputs or outputs.
        rng: Where the iteration's start comes from, one for all samples; None uses torch's global generator, which is
            put back. The result depends on it within the tolerance only.

    Returns:
        Shape ``(N,)``, float32 or wider, without gradient. Unit: outputs per input. NaN for a sample whose Jacobian
        is not finite. The Gram matrix is exact up to rounding. The iteration ends where its residual leaves a relative
        error of at most 2e-11 in float64 and 1e-5 in float32 (``eps ** (2 / 3) / 2`` of the coarser dtype of inputs
        and outputs), and most often a much smaller one.

    Raises:
        RuntimeError: The model cannot be differentiated, or some sample needs more steps.
        TypeError: ``inputs`` are not one floating-point tensor, the model did not return one, or ``rng`` is no
            generator.
        ValueError: ``inputs`` or outputs are empty, there is not one row of outputs per sample, the outputs do not
            depend on the inputs or depend on another sample's, or ``steps`` is below 1.

    Source: Moskalev et al. (2023), section 4.4 and figure 5. The iteration and how far to trust it: Parlett, "The
    symmetric eigenvalue problem" (1998), chapter 13.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        >>> jacobian_spectral_norm(lambda x: x.square(), x)
        tensor([2., 6.])
    """
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"inputs must be one tensor of shape (N, ...): got {type(inputs).__name__}. Of several, fix the others: "
            "jacobian_spectral_norm(lambda x: model(x, mask), x)."
        )
    checked_inputs(inputs)
    if type(steps) is not int or steps < 1:
        raise ValueError(f"steps must be a whole number, 1 or more: got {steps!r}.")
    if not (rng is None or isinstance(rng, torch.Generator)):
        raise TypeError(f"rng must be a torch.Generator, e.g. torch.Generator().manual_seed(0): got {rng!r}.")
    with torch.inference_mode(False), torch.enable_grad(), preserved(model, training=False):
        inputs = inputs.detach().clone().requires_grad_()
        outputs = checked_outputs(model(inputs.clone()), len(inputs))  # of a clone, which may be written to
        if not inputs.numel() or not outputs.numel():
            raise ValueError(
                "Inputs and outputs must have at least one entry per sample: "
                f"got shapes {tuple(inputs.shape)} and {tuple(outputs.shape)}."
            )
        with torch.autocast(inputs.device.type, enabled=False):
            jacobian = _Jacobian(inputs, outputs.reshape(len(outputs), -1))
            jacobian.check_samples_apart()
            if exact or (exact is None and jacobian.shape[1] <= _FEW_OUTPUTS):
                return jacobian.norm_by_gram()
            return jacobian.norm_by_lanczos(steps, rng)


def spectral_norms(model: nn.Module) -> dict[str, Tensor]:
    """The largest singular value of each weight matrix, to see its decay over training.

    A parameter with more than two axes, such as a convolution's kernel, counts as the matrix ``(size of axis 0,
    rest)``; this is not the norm of the convolution as a map of images, which also depends on their size. One with
    fewer axes, or without entries, is left out. A weight under ``torch.nn.utils.parametrize`` is the one that the
    layer uses in eval mode, without what it is made from. A weight that several layers share comes once, under its
    first name.

    Args:
        model: Any module; left as it was found.

    Returns:
        The norms by the weights' names, as in ``model.named_parameters()`` without parametrisations: scalars,
        float32 or wider, without
        gradient. NaN for a weight that is not finite.

    Raises:
        TypeError: ``model`` is no module.

    Source: Moskalev et al. (2023), section 4.4 and proposition 3.1.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, -4.0]]))
        >>> spectral_norms(torch.nn.Sequential(layer, torch.nn.Tanh()))
        {'0.weight': tensor(4.)}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module: got {type(model).__name__}.")
    found: dict[str, Tensor] = {}
    seen: set[nn.Module | Tensor] = set()
    with torch.inference_mode(False), torch.no_grad(), preserved(model, training=False):
        for prefix, module in model.named_modules():
            if module in seen:
                continue
            weights: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
            if is_parametrized(module):
                assert isinstance(module.parametrizations, nn.ModuleDict)
                weights |= {name: getattr(module, name) for name in module.parametrizations}
                seen.update(module.parametrizations.modules())  # which come later
            for name, weight in weights.items():
                if weight.ndim >= 2 and weight.numel() and weight.is_floating_point() and weight not in seen:
                    matrix = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
                    found[f"{prefix}.{name}".lstrip(".")] = _largest_singular_value(matrix[None])[0]
            seen.update(weights.values())
    return found


class _Jacobian:
    """The Jacobian of each sample as a linear map, from inputs ``(N, ...)`` with D entries to outputs ``(N, C)``."""

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.shape = (len(inputs), outputs.shape[1], inputs[0].numel())
        self.dtype = torch.promote_types(torch.promote_types(inputs.dtype, outputs.dtype), torch.float32)

    def transposed(self, u: Tensor) -> Tensor:
        """The product ``J^T u``, from ``(N, C)`` to ``(N, D)``; differentiable in ``u`` if that wants a gradient."""
        found = None
        if self.outputs.requires_grad:
            found = _derivative(self.outputs, self.inputs, u, _TWICE if u.requires_grad else _ONCE)
        if found is None:
            raise ValueError(
                "The outputs must depend on the inputs by operations that torch differentiates: got outputs without a "
                "way back. Take no_grad, detach, numpy and rounding out of the model's forward."
            )
        return found.reshape(len(found), -1).to(self.dtype)

    def check_samples_apart(self) -> None:
        """Raises where one sample's outputs move with another sample's inputs; the first sample speaks for all."""
        first = torch.zeros_like(self.outputs)
        first[0] = torch.linspace(1, 2, self.shape[1])
        if self.transposed(first)[1:].nan_to_num(0, 0, 0).any():
            raise ValueError(
                "The model must treat each sample by itself: got outputs of the first sample that depend on others "
                "too. Give normalisations running statistics, or measure one sample at a time."
            )

    def norm_by_gram(self) -> Tensor:
        jacobians = torch.empty(self.shape, dtype=self.dtype, device=self.inputs.device)
        for c in range(self.shape[1]):
            one = torch.zeros_like(self.outputs)
            one[:, c] = 1
            jacobians[:, c] = self.transposed(one)
        return _largest_singular_value(jacobians)

    def norm_by_lanczos(self, steps: int, rng: torch.Generator | None) -> Tensor:
        """By the largest eigenvalue of ``J^T J`` or, if there are fewer outputs than inputs, of ``J J^T``."""
        rows, outputs, entries = self.shape
        along = torch.zeros_like(self.outputs, requires_grad=True)
        pulled_back = self.transposed(along)

        def applied(v: Tensor) -> Tensor:
            """The product ``J v``, as the derivative of ``J^T u`` by ``u``."""
            found = _derivative(pulled_back, along, v, _TWICE)
            if found is None:
                raise RuntimeError(_TWICE)
            return found.to(self.dtype)

        there, back = (self.transposed, applied) if outputs < entries else (applied, self.transposed)
        size = min(outputs, entries)
        start = torch.randn(size, generator=rng, device=device_of(rng), dtype=torch.float64)
        v = (start / start.norm()).to(self.inputs.device, self.dtype).expand(rows, -1)
        scale = _length(there(v))  # so that squares neither vanish nor overflow
        eps = max(torch.finfo(tensor.dtype).eps for tensor in (self.inputs, self.outputs))
        tiny = torch.finfo(self.dtype).tiny
        basis, diagonal, beside = v[:, None], [], []  # of the Krylov space, and the tridiagonal matrix in it
        for step in range(1, min(steps, size) + 1):
            w = back(there(v) / scale.clamp_min(tiny)) / scale.clamp_min(tiny)
            diagonal.append((v * w).sum(1))
            off = (diagonal[0] - 1).abs()  # zero if the products are each other's transpose, and no backward hides
            if step == 1 and ((off > eps**0.5) & off.isfinite() & (scale[:, 0] > 0)).any():
                raise RuntimeError(_TWICE)
            for _ in range(2):  # once leaves fewer digits orthogonal
                w = w - (basis.mT @ (basis @ w[..., None]))[..., 0]
            length = _length(w)
            beside.append(length[:, 0])
            if step % _STEPS_PER_CHECK == 0 or step in (steps, size):
                below = torch.diag_embed(torch.stack(beside, 1)[:, :-1], -1)
                largest, last = _top_eigenpair(torch.diag_embed(torch.stack(diagonal, 1)) + below)
                error = beside[-1] * last.abs() / largest  # NaN where the Jacobian is zero or not finite
                pending = error > eps ** (2 / 3)
                if not pending.any():  # at the latest when the basis spans the whole space
                    return largest.sqrt() * scale[:, 0]
            v = w / length.clamp_min(tiny)
            basis = torch.cat([basis, v[:, None]], 1)
        raise RuntimeError(
            f"The iteration must end within {steps} steps: {int(pending.sum())} of {rows} samples had a relative "
            f"error of up to {error[pending].max():.0e}. Give more steps=, or exact=True for {outputs} backwards."
        )


def _derivative(of: Tensor, by: Tensor, along: Tensor, reason: str) -> Tensor | None:
    """The vector-Jacobian product; None where there is no way from one to the other."""
    create_graph = along.requires_grad
    try:
        return torch.autograd.grad(of, by, along.to(of), True, create_graph, allow_unused=True)[0]
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(f"{reason} It raised: {error}") from error


def _largest_singular_value(matrices: Tensor) -> Tensor:
    """Of matrices ``(N, R, S)``, by the Gram matrix of the shorter side, which costs the largest one no digits."""
    scale = matrices.abs().amax((1, 2), keepdim=True)
    matrices = matrices / scale.clamp_min(torch.finfo(matrices.dtype).tiny)
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mT
    with torch.autocast(matrices.device.type, enabled=False):
        gram = matrices @ matrices.mT
    return _top_eigenpair(gram)[0].sqrt() * scale[:, 0, 0]


def _top_eigenpair(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue and the last entry of its eigenvector; NaN where the matrix is not finite."""
    finite = symmetric.isfinite().all(2).all(1)
    values, vectors = torch.linalg.eigh(symmetric.where(finite[:, None, None], 0))
    return values[:, -1].where(finite, nan), vectors[:, -1, -1]


def _length(vectors: Tensor) -> Tensor:
    """Euclidean, shape ``(N, 1)``; also of entries whose squares are out of range."""
    peak = vectors.abs().amax(1, keepdim=True)
    scaled = vectors / peak.clamp_min(torch.finfo(vectors.dtype).tiny)
    return peak * scaled.square().sum(1, keepdim=True).sqrt()
