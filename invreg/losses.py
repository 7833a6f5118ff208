"""How do I train a model towards invariance?"""

from __future__ import annotations

from math import inf
from typing import ClassVar

import torch
from torch import Tensor, distributed, nn

from invreg.calls import Call
from invreg.functional import (
    ErrorFunction,
    Model,
    checked_inputs,
    checked_outputs,
    distribution_error,
    logit_error,
    normalized_logit_error,
    orbit_outputs,
)
from invreg.groups import IndexedTransformations, Transformations
from invreg.groups.batch import Batch, first_tensor, map_tensors, stack
from invreg.groups.transformations import checked, device_of, in_words

__all__ = ["InvarianceLoss", "KLInvarianceLoss", "L2InvarianceLoss", "NormalizedL2InvarianceLoss"]


class InvarianceLoss(nn.Module):
    r"""The mean invariance error of a model on a batch, as a regulariser: ``loss + weight * invariance(model, x, y)``.

    .. math:: \frac{1}{N K} \sum_{n=1}^{N} \sum_{k=1}^{K} e(x_n, g_{nk})

    The elements are all non-identity elements of the group, or ``samples`` of them drawn anew for each sample. All
    transformed batches go through the model in one forward.

    Outputs that are not finite make it NaN, as they do any loss; ``measure_invariance`` names the sample and element.

    Batch normalisation in training mode sees that forward as one more batch: its statistics, and the running ones,
    then cover the transformed inputs as well, which is what a model that shall treat them alike should have. Where
    that is not wanted, freeze it (``module.eval()`` on these layers) or use another normalisation. Dropout in training
    mode draws other masks for each transformed input, so that the loss also measures the dropout's own noise and does
    not reach zero, not even for an invariant model. It still pulls towards invariance; to take the noise out, call
    the loss on the model in eval mode, without giving ``outputs``.

    Two settings make a training cheaper, and neither changes the expected gradient: ``fraction`` measures a random part
    of the batch, and ``every`` measures at every n-th call only, the first one included, and counts it n-fold. Both
    hold where this module is in training mode and gradients are recorded; elsewhere, each call measures everything. The
    calls between return a zero that may be added and differentiated as any other value; compiled, it has a gradient
    where ``outputs`` do. The count is part of a copy or a pickle but not of the ``state_dict``: a training that is
    resumed from one starts with a call that counts, which shifts the period and biases nothing.

    In distributed training, each rank draws its own elements and rows, repeatably, from the global seed and its rank,
    also if all ranks have the same seed. Ranks that share a batch (tensor parallelism) must draw the same: give them
    an ``rng`` each, seeded alike. A compiled loss draws from the global generator as it is: seed it by rank there.

    Args:
        group: The group under which the model shall be invariant, or a ``TransformationSet``.
        error: The per-sample error; one of ``invreg.functional`` or any callable ``(reference, transformed) -> (N,)``.
        samples: Elements per sample, without replacement, none of them the identity. None takes all of a finite group.
        rng: Where the random elements come from; None uses torch's global generator, which is also what a compiled
            loss needs.
        detach_reference: Whether no gradient flows through the outputs at ``x``, so that only those at ``gx`` move.
        fraction: Which part of the batch is measured in training, rounded to a number of rows but at least one; drawn
            anew at each call.
        every: At which calls in training it is measured: 1 for each, n for every n-th, which counts n-fold.

    Raises:
        TypeError: ``group`` is no group, ``error`` no callable, ``rng`` no generator, or ``fraction`` no number.
        ValueError: ``samples`` is None for an infinite group, below 1, or more than the non-identity elements;
            ``fraction`` is not above 0 and at most 1; or ``every`` is no whole number from 1 on.

    Source: Moskalev et al. (2023), eq. (4).

    Example:
        >>> from invreg import CyclicRotation
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> invariance = InvarianceLoss(CyclicRotation(4), error=logit_error)
        >>> x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4])
        >>> logits = model(x)
        >>> loss = torch.nn.functional.cross_entropy(logits, y) + 0.1 * invariance(model, x, logits)
        >>> loss.backward()
    """

    def __init__(
        self,
        group: Transformations,
        error: ErrorFunction = logit_error,
        *,
        samples: int | None = None,
        rng: torch.Generator | None = None,
        detach_reference: bool = False,
        fraction: float = 1.0,
        every: int = 1,
    ) -> None:
        super().__init__()
        check_draw(group, samples, rng)
        if not callable(error):
            raise TypeError(
                f"error must be a callable (reference, transformed) -> (N,), e.g. logit_error: got {error!r}."
            )
        if not isinstance(fraction, (int, float)):
            raise TypeError(f"fraction must be a number: got {fraction!r}.")
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, the whole batch: got {fraction!r}.")
        if type(every) is not int or every < 1:
            raise ValueError(f"every must be a whole number, 1 for each call or more: got {every!r}.")
        self.group = group
        self.error = error
        self.samples = samples
        self.rng = rng
        self.detach_reference = detach_reference
        self.fraction = float(fraction)
        self.every = every
        self._turns = _Turns(every) if every > 1 else None

    def forward(self, model: Model, inputs: Batch, outputs: Tensor | None = None) -> Tensor:
        """Measures the model on a batch.

        Args:
            model: Any callable from inputs to logits.
            inputs: Shape ``(N, ...)``, floating point; or a mapping, tuple or list of tensors, if the group acts on
                such (``OnKeys``) and the model takes them.
            outputs: The model's outputs at ``inputs``, shape ``(N, C, ...)`` or ``(N,)``, if they are known already;
                None computes them in the same forward as the others.

        Returns:
            Scalar, float32 or wider; zero for a group of the identity alone, and at the calls that ``every`` leaves
            out.

        Raises:
            TypeError: ``inputs`` are not floating point, or the model does not return a floating-point tensor.
            ValueError: ``inputs`` are empty, the group cannot act on them, there is not one output per input, or
                ``outputs`` have another shape than what the model returns.
        """
        checked_inputs(inputs)
        if outputs is not None:
            checked_outputs(outputs, len(first_tensor(inputs)))
        if self.group.order == 1:
            return _zero(inputs, outputs)
        if not (self.training and torch.is_grad_enabled()):
            return self._mean_error(*self._outputs(model, inputs, outputs))
        if self._turns is not None and not self._turns.take():
            return _zero(inputs, outputs)
        if self.fraction < 1:
            model, inputs, outputs = self._of_some_rows(model, inputs, outputs)
        error = self._mean_error(*self._outputs(model, inputs, outputs))
        return error if self.every == 1 else error * self.every

    def extra_repr(self) -> str:
        """The settings, for ``print``."""
        error = getattr(self.error, "__name__", repr(self.error))
        settings = f"{self.group!r}, error={error}, samples={self.samples}, detach_reference={self.detach_reference}"
        rarer = {"fraction": self.fraction, "every": self.every}
        return settings + "".join(f", {name}={value}" for name, value in rarer.items() if value != 1)

    def _outputs(self, model: Model, inputs: Batch, outputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """The outputs at the inputs, shape ``(N, ...)``, and under the elements, shape ``(K, N, ...)``."""
        transformed = orbit_outputs(model, self._transformed(inputs, identity=outputs is None))
        if outputs is None:
            return transformed[0], transformed[1:]
        if outputs.shape != transformed.shape[1:]:
            raise ValueError(
                f"outputs must be the model's own, of shape {tuple(transformed.shape[1:])}: got {tuple(outputs.shape)}."
            )
        return outputs, transformed

    def _mean_error(self, outputs: Tensor, transformed: Tensor) -> Tensor:
        """The mean error of what ``_outputs`` returns."""
        reference = outputs.detach() if self.detach_reference else outputs
        errors = self.error(reference.expand_as(transformed).flatten(0, 1), transformed.flatten(0, 1))
        if errors.shape != (transformed.shape[0] * transformed.shape[1],):
            raise ValueError(
                f"error must return one value per row of its arguments, {transformed.shape[0] * transformed.shape[1]}: "
                f"got shape {tuple(errors.shape)}."
            )
        return errors.mean()

    def _transformed(self, inputs: Batch, *, identity: bool) -> Batch:
        """The inputs under the elements, shape ``(K, N, ...)``, after the inputs themselves if asked for."""
        if self.samples is None:
            assert isinstance(self.group, IndexedTransformations)
            self.group._check_batch(inputs)
            return self.group.orbit(inputs, identity=identity)
        some = first_tensor(inputs)
        elements = self.group.sample_non_identity(len(some), self.samples, _own_to_rank(self.rng)).to(some.device)
        transformed = [checked(self.group, self.group.act(g, inputs), inputs) for g in elements]
        return stack([inputs, *transformed] if identity else transformed)

    def _of_some_rows(self, model: Model, inputs: Batch, outputs: Tensor | None) -> tuple[Model, Batch, Tensor | None]:
        """The arguments of the forward with a random part of the rows, the same ones of all tensors."""
        rows = len(first_tensor(inputs))
        kept = max(1, round(self.fraction * rows))
        if kept == rows:
            return model, inputs, outputs
        rng = _own_to_rank(self.rng)
        chosen = torch.randperm(rows, generator=rng, device=device_of(rng))[:kept]
        if isinstance(model, Call):  # whose other arguments have rows too
            model = model.rows(chosen)
        inputs = map_tensors(lambda t: t[chosen.to(t.device)], inputs)
        return model, inputs, None if outputs is None else outputs[chosen.to(outputs.device)]


class _NamedInvarianceLoss(InvarianceLoss):
    """``InvarianceLoss`` with the error that the class names."""

    named_error: ClassVar[staticmethod[[Tensor, Tensor], Tensor]]

    def __init__(
        self,
        group: Transformations,
        *,
        samples: int | None = None,
        rng: torch.Generator | None = None,
        detach_reference: bool = False,
        fraction: float = 1.0,
        every: int = 1,
    ) -> None:
        super().__init__(
            group,
            type(self).named_error,
            samples=samples,
            rng=rng,
            detach_reference=detach_reference,
            fraction=fraction,
            every=every,
        )


class KLInvarianceLoss(_NamedInvarianceLoss):
    """``InvarianceLoss`` by the Kullback-Leibler divergence of the predictive distributions, in nats.

    See ``InvarianceLoss`` for batch normalisation and dropout.

    Args:
        group: The group under which the model shall be invariant, or a ``TransformationSet``.
        samples: Elements per sample; None takes all non-identity elements of a finite group.
        rng: Where the random elements come from; None uses torch's global generator.
        detach_reference: Whether no gradient flows through the outputs at ``x``.
        fraction: Which part of the batch is measured in training.
        every: At which calls in training it is measured: every n-th counts n-fold.

    Source: Moskalev et al. (2023), eqs. (1) and (4).

    Example:
        >>> from invreg import Flip
        >>> KLInvarianceLoss(Flip())(lambda x: x, torch.tensor([[0.0, 2.0]]))
        tensor(1.5232)
    """

    named_error = staticmethod(distribution_error)


class L2InvarianceLoss(_NamedInvarianceLoss):
    """``InvarianceLoss`` by half the squared distance of the logits, which the paper found the best regulariser.

    See ``InvarianceLoss`` for batch normalisation and dropout.

    Args:
        group: The group under which the model shall be invariant, or a ``TransformationSet``.
        samples: Elements per sample; None takes all non-identity elements of a finite group.
        rng: Where the random elements come from; None uses torch's global generator.
        detach_reference: Whether no gradient flows through the outputs at ``x``.
        fraction: Which part of the batch is measured in training.
        every: At which calls in training it is measured: every n-th counts n-fold.

    Source: Moskalev et al. (2023), eqs. (2) and (4).

    Example:
        >>> from invreg import Flip
        >>> L2InvarianceLoss(Flip())(lambda x: x, torch.tensor([[0.0, 2.0]]))
        tensor(4.)
    """

    named_error = staticmethod(logit_error)


class NormalizedL2InvarianceLoss(_NamedInvarianceLoss):
    """``InvarianceLoss`` by the squared distance of the logits relative to their squared norm.

    Not for models with a single logit: it is close to zero wherever the model is undecided, and the error explodes.
    See ``InvarianceLoss`` for batch normalisation and dropout.

    Args:
        group: The group under which the model shall be invariant, or a ``TransformationSet``.
        samples: Elements per sample; None takes all non-identity elements of a finite group.
        rng: Where the random elements come from; None uses torch's global generator.
        detach_reference: Whether no gradient flows through the outputs at ``x``.
        fraction: Which part of the batch is measured in training.
        every: At which calls in training it is measured: every n-th counts n-fold.

    Source: Moskalev et al. (2023), section 4.4.

    Example:
        >>> from invreg import Flip
        >>> NormalizedL2InvarianceLoss(Flip())(lambda x: x, torch.tensor([[0.0, 2.0]]))
        tensor(2.)
    """

    named_error = staticmethod(normalized_logit_error)


def check_draw(group: Transformations, samples: int | None, rng: torch.Generator | None) -> None:
    """Raises unless so many non-identity elements can be drawn per sample; None means all."""
    if not isinstance(group, Transformations):
        raise TypeError(f"group must be a Group, e.g. CyclicRotation(4), or a TransformationSet: got {group!r}.")
    if not (rng is None or isinstance(rng, torch.Generator)):
        raise TypeError(f"rng must be a torch.Generator, e.g. torch.Generator().manual_seed(0): got {rng!r}.")
    if samples is None:
        if group.order > 1 and not isinstance(group, IndexedTransformations):
            raise ValueError(
                f"{group!r} has {in_words(group.order)} elements, which are not listed: say how many to draw per "
                "sample with samples=, or list those of a finite part by Restricted."
            )
        return
    most = group.order - 1
    if type(samples) is not int or samples < 1 or samples > most:
        limit = "1 or more" if most == inf else f"1 to {in_words(most)}" if most else "None"
        raise ValueError(
            f"samples must be {limit} for {group!r}, a whole number of non-identity elements: got {samples!r}."
            + (" None takes all." if isinstance(group, IndexedTransformations) else "")
        )


class _Turns:
    """Whose turn it is: the first of every ``length`` calls.

    A ring of objects and no number: a compiler makes one graph for each value of a number, and two for any ring.
    """

    def __init__(self, length: int, position: int = 0) -> None:
        ring = [_Turn(index) for index in range(length)]
        for turn, after in zip(ring, [*ring[1:], ring[0]], strict=True):
            turn.after = after
        self.length = length
        self.now = ring[position]

    def take(self) -> bool:
        """Whether it is this call's turn; the next call has the next one."""
        now = self.now
        self.now = now.after
        return now.first

    def __reduce__(self) -> tuple[type[_Turns], tuple[int, int]]:
        """Copied by its position: the ring itself is as deep as it is long."""
        return _Turns, (self.length, self.now.index)


class _Turn:
    """A place in the ring."""

    after: _Turn

    def __init__(self, index: int) -> None:
        self.index = index
        self.first = index == 0


def _zero(inputs: Batch, outputs: Tensor | None) -> Tensor:
    """A zero as the loss would be one, that ``backward`` may be called on."""
    some = first_tensor(inputs)
    dtype = torch.promote_types(some.dtype, torch.float32)
    if torch.compiler.is_compiling():  # a compiler cannot make a leaf: it gets an empty sum
        return (some if outputs is None else outputs)[:0].sum(dtype=dtype)
    return some.new_zeros((), dtype=dtype, requires_grad=torch.is_grad_enabled())


def _own_to_rank(rng: torch.Generator | None) -> torch.Generator | None:
    """Where to draw from: by each rank of a distributed training its own numbers, unless there is a generator."""
    if rng is not None or torch.compiler.is_compiling() or not distributed.is_available():
        return rng
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return None
    seed = int(torch.randint(2**31, (), device="cpu"))
    return torch.Generator().manual_seed(seed + distributed.get_rank())
