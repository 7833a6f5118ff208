"""How do I train a model towards invariance?"""

from __future__ import annotations

from math import inf
from typing import ClassVar

import torch
from torch import Tensor, nn

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
from invreg.groups.batch import Batch, first_tensor, stack
from invreg.groups.transformations import checked, in_words

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

    Args:
        group: The group under which the model shall be invariant, or a ``TransformationSet``.
        error: The per-sample error; one of ``invreg.functional`` or any callable ``(reference, transformed) -> (N,)``.
        samples: Elements per sample, without replacement, none of them the identity. None takes all of a finite group.
        rng: Where the random elements come from; None uses torch's global generator, which is also what a compiled
            loss needs.
        detach_reference: Whether no gradient flows through the outputs at ``x``, so that only those at ``gx`` move.

    Raises:
        TypeError: ``group`` is no group, ``error`` no callable or ``rng`` no generator.
        ValueError: ``samples`` is None for an infinite group, below 1, or more than the non-identity elements.

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
    ) -> None:
        super().__init__()
        check_draw(group, samples, rng)
        if not callable(error):
            raise TypeError(
                f"error must be a callable (reference, transformed) -> (N,), e.g. logit_error: got {error!r}."
            )
        self.group = group
        self.error = error
        self.samples = samples
        self.rng = rng
        self.detach_reference = detach_reference

    def forward(self, model: Model, inputs: Batch, outputs: Tensor | None = None) -> Tensor:
        """Measures the model on a batch.

        Args:
            model: Any callable from inputs to logits.
            inputs: Shape ``(N, ...)``, floating point; or a mapping, tuple or list of tensors, if the group acts on
                such (``OnKeys``) and the model takes them.
            outputs: The model's outputs at ``inputs``, shape ``(N, C, ...)`` or ``(N,)``, if they are known already;
                None computes them in the same forward as the others.

        Returns:
            Scalar, float32 or wider; zero for a group of the identity alone.

        Raises:
            TypeError: ``inputs`` are not floating point, or the model does not return a floating-point tensor.
            ValueError: ``inputs`` are empty, the group cannot act on them, there is not one output per input, or
                ``outputs`` have another shape than what the model returns.
        """
        checked_inputs(inputs)
        if outputs is not None:
            checked_outputs(outputs, len(first_tensor(inputs)))
        if self.group.order == 1:
            some = first_tensor(inputs)
            return some.new_zeros((), dtype=torch.promote_types(some.dtype, torch.float32))
        transformed = orbit_outputs(model, self._transformed(inputs, identity=outputs is None))
        if outputs is None:
            outputs, transformed = transformed[0], transformed[1:]
        elif outputs.shape != transformed.shape[1:]:
            raise ValueError(
                f"outputs must be the model's own, of shape {tuple(transformed.shape[1:])}: got {tuple(outputs.shape)}."
            )
        reference = outputs.detach() if self.detach_reference else outputs
        errors = self.error(reference.expand_as(transformed).flatten(0, 1), transformed.flatten(0, 1))
        if errors.shape != (transformed.shape[0] * transformed.shape[1],):
            raise ValueError(
                f"error must return one value per row of its arguments, {transformed.shape[0] * transformed.shape[1]}: "
                f"got shape {tuple(errors.shape)}."
            )
        return errors.mean()

    def extra_repr(self) -> str:
        """The settings, for ``print``."""
        error = getattr(self.error, "__name__", repr(self.error))
        return f"{self.group!r}, error={error}, samples={self.samples}, detach_reference={self.detach_reference}"

    def _transformed(self, inputs: Batch, *, identity: bool) -> Batch:
        """The inputs under the elements, shape ``(K, N, ...)``, after the inputs themselves if asked for."""
        if self.samples is None:
            assert isinstance(self.group, IndexedTransformations)
            self.group._check_batch(inputs)
            return self.group.orbit(inputs, identity=identity)
        some = first_tensor(inputs)
        elements = self.group.sample_non_identity(len(some), self.samples, self.rng).to(some.device)
        transformed = [checked(self.group, self.group.act(g, inputs), inputs) for g in elements]
        return stack([inputs, *transformed] if identity else transformed)


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
    ) -> None:
        error = type(self).named_error
        super().__init__(group, error, samples=samples, rng=rng, detach_reference=detach_reference)


class KLInvarianceLoss(_NamedInvarianceLoss):
    """``InvarianceLoss`` by the Kullback-Leibler divergence of the predictive distributions, in nats.

    See ``InvarianceLoss`` for batch normalisation and dropout.

    Args:
        group: The group under which the model shall be invariant, or a ``TransformationSet``.
        samples: Elements per sample; None takes all non-identity elements of a finite group.
        rng: Where the random elements come from; None uses torch's global generator.
        detach_reference: Whether no gradient flows through the outputs at ``x``.

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
