"""What does a model make of one batch under a group?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from invreg.functional import (
    Model,
    checked_outputs,
    distribution_error,
    has_single_logit,
    logit_error,
    normalized_logit_error,
    predicted_class,
)
from invreg.groups import Group, Transformations
from invreg.groups.batch import Batch, first_tensor, map_tensors, shapes, tensors
from invreg.groups.transformations import checked
from invreg.saliency import MapMethod, SaliencyMap, completeness_gap, saliency_similarity

OutputAction = Group | Callable[[Tensor, Tensor], Tensor]
"""How a group acts on outputs: a group with the same elements, or a callable ``(element, outputs)``."""

_ERRORS = {
    "logit_error": logit_error,
    "distribution_error": distribution_error,
    "normalized_logit_error": normalized_logit_error,
}
_OF_VALUES = ("logit_error", "normalized_logit_error")
"""The errors of outputs that are no logits."""

_LEAST_SQUARED_NORM = 1e-60
"""What a normalized error divides by at least, in float64: smaller than the outputs of any model that is of use."""

_MAPS = "Making saliency maps"

_COLUMNS = 8
"""Under how many elements, the identity included, saliency maps are kept to be looked at."""


class NotFiniteError(ValueError):
    """A model's outputs, or what was made of them, are not finite.

    Args:
        message: What is not finite, for which sample, and what to do.
        reason: The same in short, for a sample that is left out because of it.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Measured:
    """What one batch of ``N`` samples showed under ``K`` elements.

    Args:
        indices: Positions of the samples in the data, ``(N,)``.
        inputs: The samples.
        elements: ``(K, *element_shape)``, or ``(K, N, *element_shape)`` if drawn for each sample.
        by_element: Numbers under each element, by name, each ``(K, N)``, float64; NaN where not measured.
        over_samples: Numbers of each sample, by name, each ``(N,)``, float64.
        labels: ``(N,)``; None without labels or with one per position.
        predictions: At the identity, ``(N,)``; None for outputs per position or that are no logits.
        changed: Under the elements, ``(K, N)``, likewise.
        classes: How many there are; 0 where there is not one class per sample.
        gap: Sum of completeness gaps and of the changes that they belong to, ``(2,)``.
        maps: Saliency maps at the identity and under the first elements, moved back, ``(E, n, ...)`` for the first
            ``n`` samples; None where there are none.
        targets: The classes that they explain, ``(n,)``; None for a single logit.
    """

    indices: Tensor
    inputs: Batch
    elements: Tensor
    by_element: dict[str, Tensor]
    over_samples: dict[str, Tensor]
    labels: Tensor | None
    predictions: Tensor | None
    changed: Tensor | None
    classes: int
    gap: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    maps: Tensor | None = None
    targets: Tensor | None = None


@dataclass
class Evaluation:
    """How batches are measured.

    Args:
        model: Any callable from inputs to logits.
        group: The group, or a set of transformations.
        output_action: How it acts on outputs; None where these shall stay the same.
        outputs: Whether outputs are logits, or numbers with no softmax.
        map_method: How saliency maps are made; None for none.
        noisy: Whether the model gives other outputs for the same input; None until it was tried.
    """

    model: Model
    group: Transformations
    output_action: OutputAction | None
    outputs: Literal["logits", "values"]
    map_method: MapMethod | None
    noisy: bool | None = None

    def measure(
        self, inputs: Batch, labels: Tensor | None, elements: Tensor, indices: Tensor, *, with_maps: int
    ) -> Measured:
        """Measures one batch.

        Args:
            inputs: ``N`` samples.
            labels: Their classes, or None.
            elements: ``(K, *element_shape)``, or ``(K, N, *element_shape)``, one for each sample.
            indices: Positions of the samples in the data, ``(N,)``.
            with_maps: For how many of them, the first ones, saliency maps are made.

        Returns:
            What it showed.
        """
        rows = len(first_tensor(inputs))
        drawn = elements.ndim > 1 + len(self.group.element_shape)
        with torch.no_grad():
            # A model that writes into its input must not spoil the data.
            reference = self._outputs(map_tensors(torch.clone, inputs))
            outputs, returned, changes = [], [], []
            for g in elements:
                moved = self._act(g, inputs)
                if self._loses:
                    back = self._act(self.group.inverse(g), moved)  # type: ignore[attr-defined]  # a group
                    changes.append(_relative_change(inputs, moved, back))
                    returned.append(self._outputs(_apart(back, inputs), g))
                outputs.append(self._moved_back(g, self._outputs(_apart(moved, inputs), g)))
            if any(out.shape != reference.shape for out in outputs):
                shapes = sorted({tuple(out.shape) for out in (reference, *outputs)})
                raise ValueError(f"The model must return one shape for inputs of one shape: got {shapes}.")
            transformed = torch.stack(outputs) if outputs else reference[None, :][:0]
            self._check_finite("The model's outputs", elements, indices, reference, transformed)
            if self.outputs == "values":
                reference, transformed = reference.reshape(rows, -1), transformed.reshape(len(outputs), rows, -1)
            measured = Measured(indices, inputs, elements, {}, {}, None, None, None, 0)
            self._measure_errors(measured, reference, transformed)
            if self._loses:
                self._measure_action(measured, reference, changes, returned)
            self._measure_noise(measured, reference)
            if self.outputs == "logits":
                self._measure_predictions(measured, reference, transformed, labels)
        if self.map_method is not None and with_maps > 0:
            self._check_maps(inputs, reference)
            target = None
            if not has_single_logit(reference):
                target = (measured.predictions if measured.labels is None else measured.labels)[:with_maps]  # type: ignore[index]  # one per sample, as was checked
            some = elements[:, :with_maps] if drawn else elements
            self._measure_maps(measured, self.map_method, some, inputs[:with_maps], target)
        return measured

    @property
    def _loses(self) -> bool:
        """Whether the action does not quite undo itself."""
        return isinstance(self.group, Group) and not self.group.exact

    def _measure_errors(self, measured: Measured, reference: Tensor, transformed: Tensor) -> None:
        at_once = transformed.shape[0] if reference.ndim <= 2 else 1  # of outputs per position there may be many
        x, parts = reference.double(), torch.split(transformed, at_once)
        for name in _ERRORS if self.outputs == "logits" else _OF_VALUES:
            measured.by_element[name] = torch.cat([_error(name, x, moved.double()) for moved in parts])

    def _measure_action(
        self, measured: Measured, reference: Tensor, changes: list[Tensor], returned: list[Tensor]
    ) -> None:
        """How far inputs moved and moved back are from the inputs, and the outputs at them from ``reference``."""
        none = reference.new_empty(0, len(reference))
        self._check_finite(
            "Inputs",
            measured.elements,
            measured.indices,
            none.new_zeros(len(reference)),
            torch.stack([*changes]) if changes else none,
        )
        outputs = torch.stack([out.reshape(reference.shape) for out in returned]) if returned else reference[None][:0]
        what = "The model's outputs at inputs moved and moved back"
        self._check_finite(what, measured.elements, measured.indices, reference, outputs)
        errors = [_finite("action_logit_error", logit_error(reference.double(), out.double())) for out in outputs]
        for name, values in (("action_error", changes), ("action_logit_error", errors)):
            measured.by_element[name] = torch.stack(values).double() if values else none.double()

    def _measure_noise(self, measured: Measured, reference: Tensor) -> None:
        """How far two outputs for the same input are from one another, if they differ."""
        if self.noisy is False:
            return
        again = self._outputs(map_tensors(torch.clone, measured.inputs)).reshape(reference.shape)
        self._check_finite(
            "The model's outputs for the same input again", measured.elements[:0], measured.indices, again, again[:0]
        )
        if self.noisy is None:
            rounding = 4 * torch.finfo(reference.dtype).eps * float(reference.abs().max())
            self.noisy = bool((again - reference).abs().max() > rounding)
            if not self.noisy:
                return
        error = _finite("noise_error", logit_error(reference.double(), again.double()))
        average = _mean(measured.by_element["logit_error"], 0.0)
        measured.over_samples |= {"noise_error": error, "noise_excess": average - error}
        if self.outputs == "logits":
            measured.over_samples["noise_consistency"] = _share(predicted_class(again) == predicted_class(reference), 1)

    def _measure_predictions(
        self, measured: Measured, reference: Tensor, transformed: Tensor, labels: Tensor | None
    ) -> None:
        predictions = predicted_class(reference)
        changed = predicted_class(transformed.flatten(0, 1)).view(len(transformed), *predictions.shape)
        measured.by_element["consistency"] = _share(changed == predictions, 2)
        if predictions.ndim == 1:
            measured.predictions, measured.changed = predictions, changed
            measured.classes = 2 if has_single_logit(reference) else reference.shape[1]
        if labels is None:
            return
        labels = class_indices(labels, reference, predictions)
        if labels.ndim == 1:
            measured.labels = labels
        at_identity, right = predictions == labels, changed == labels
        accuracy, by_element = _share(at_identity, 1), _share(right, 2)
        measured.by_element["accuracy"] = by_element
        # The identity is one of the group's elements: 1 of `order`, or none of infinitely many.
        weight = 1 / self.group.order
        average = by_element.mean(0) if len(by_element) else accuracy
        measured.over_samples |= {
            "accuracy": accuracy,
            "group_accuracy": weight * accuracy + (1 - weight) * average,
            "orbit_accuracy": _share(at_identity & right.all(0), 1),
        }

    def _check_maps(self, inputs: Batch, reference: Tensor) -> None:
        if not isinstance(inputs, Tensor):
            raise ValueError(
                f"Saliency maps are made for inputs of one tensor, not {type(inputs).__name__}: set saliency=None."
            )
        if self.outputs == "logits" and reference.ndim > 2:
            raise ValueError(
                "Saliency maps explain one prediction per sample, but the model returns outputs of shape "
                f"{tuple(reference.shape)}: set saliency=None."
            )

    def _measure_maps(
        self, measured: Measured, method: MapMethod, elements: Tensor, inputs: Tensor, target: Tensor | None
    ) -> None:
        if isinstance(method, SaliencyMap) and method.attribution is None:
            attributions = self._call(_MAPS, lambda x: method.attribute(self.model, x, target), inputs, None)
            reference = method.fold(attributions)
            gaps = completeness_gap(self.model, inputs, attributions, target)
            measured.gap = gaps.sum(1).double()
        else:
            reference = self._map(method, inputs, target, None)
        realigned = reference.new_empty(0, *reference.shape)
        if len(elements):
            maps = (self._map(method, self._act(g, inputs), target, g) for g in elements)
            realigned = torch.stack([self.group.realign(g, m) for g, m in zip(elements, maps, strict=True)])
        self._check_finite("Saliency maps", elements, measured.indices, reference, realigned)
        values = saliency_similarity(reference.expand_as(realigned).flatten(0, 1), realigned.flatten(0, 1))
        rows = len(measured.indices)
        similarity = values.new_full((len(realigned), rows), torch.nan, dtype=torch.float64)
        similarity[:, : len(inputs)] = values.view(realigned.shape[:2])
        measured.by_element["saliency_similarity"] = similarity
        measured.maps, measured.targets = torch.cat([reference[None], realigned[: _COLUMNS - 1]]), target

    def _map(self, method: MapMethod, inputs: Tensor, target: Tensor | None, element: Tensor | None) -> Tensor:
        maps = self._call(_MAPS, lambda x: method(self.model, x, target), inputs, element)
        if not isinstance(maps, Tensor) or maps.ndim == 0 or len(maps) != len(inputs):
            came = f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(f"saliency must return one map per sample, {len(inputs)} here: got {came}.")
        return maps

    def _act(self, element: Tensor, inputs: Batch) -> Batch:
        try:
            return checked(self.group, self.group.act(element, inputs), inputs)
        except (TypeError, ValueError, torch.OutOfMemoryError):  # bad input, which the group explains
            raise
        except Exception as error:
            raise RuntimeError(
                f"The action failed on {self._under(element)}, shape {shapes(inputs)}: {error}"
            ) from error

    def _moved_back(self, element: Tensor, outputs: Tensor) -> Tensor:
        """Outputs at transformed inputs, moved back to where the outputs at the inputs lie."""
        if self.output_action is None:
            return outputs
        inverse = self.group.inverse(element)  # type: ignore[attr-defined]  # a group, as was checked
        act = self.output_action.act if isinstance(self.output_action, Group) else self.output_action
        try:
            moved = act(inverse, outputs)
        except (TypeError, ValueError) as error:
            raise ValueError(f"output_action failed on outputs of shape {tuple(outputs.shape)}: {error}") from error
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise RuntimeError(f"output_action failed on outputs of shape {tuple(outputs.shape)}: {error}") from error
        if not isinstance(moved, Tensor) or (moved.shape, moved.dtype) != (outputs.shape, outputs.dtype):
            came = f"{tuple(moved.shape)}, {moved.dtype}" if isinstance(moved, Tensor) else type(moved).__name__
            raise ValueError(
                f"output_action must keep the outputs' shape and dtype, {tuple(outputs.shape)}, {outputs.dtype}: "
                f"got {came}."
            )
        return moved

    def _outputs(self, inputs: Batch, element: Tensor | None = None) -> Tensor:
        outputs = checked_outputs(self._call("The model", self.model, inputs, element), len(first_tensor(inputs)))
        return outputs.clone()  # of a model that gives the same memory each time

    def _call(self, what: str, function: Callable[[Batch], Any], inputs: Batch, element: Tensor | None) -> Any:
        """Calls the user's code on a batch under an element."""
        try:
            return function(inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise RuntimeError(f"{what} failed on {self._under(element)}, shape {shapes(inputs)}: {error}") from error

    def _under(self, element: Tensor | None) -> str:
        """Which inputs these are, for a message."""
        if element is None:
            return "the inputs as they are"
        one = element.shape == self.group.element_shape
        return f"inputs under {f'element {element.tolist()}' if one else 'drawn elements'} of {self.group!r}"

    def _check_finite(
        self, what: str, elements: Tensor, indices: Tensor, reference: Tensor, transformed: Tensor
    ) -> None:
        """Raises unless all values are finite, at the identity ``(N, ...)`` and under the elements ``(K, N, ...)``."""
        if reference.isfinite().all() and transformed.isfinite().all():
            return
        drawn = elements.ndim > 1 + len(self.group.element_shape)
        for values, g in ((reference, None), *zip(transformed, elements, strict=True)):
            finite = values.isfinite().reshape(len(values), -1).all(1)
            if not finite.all():
                row = int((~finite).nonzero()[0])
                where = self._under(g if g is None or not drawn else g[row])
                raise NotFiniteError(
                    f"{what} must be finite: they are not for sample {int(indices[row])} of the data (row {row} of its "
                    f'batch), {where}. Look at this sample, or leave such samples out with on_error="skip".',
                    f"{what} are not finite, {where}",
                )


def class_indices(labels: Tensor, outputs: Tensor, predictions: Tensor) -> Tensor:
    """The labels as int64, if they are classes in the shape of the predictions."""
    single = has_single_logit(outputs)
    if single and labels.shape == outputs.shape:
        labels = labels.reshape(predictions.shape)
    integers = not labels.is_floating_point() and labels.dtype != torch.bool
    if not integers and not (single and bool(((labels == 0) | (labels == 1)).all())):
        one_hot = labels.shape == outputs.shape and not single
        raise TypeError(
            f"Labels must be class indices of an integer dtype: got {labels.dtype} of shape {tuple(labels.shape)}. "
            f"Use {'y.argmax(1)' if one_hot else 'y.long()'}."
        )
    if labels.shape != predictions.shape:
        raise ValueError(
            f"Labels must have the shape of the predictions, {tuple(predictions.shape)}: got {tuple(labels.shape)}. "
            "Give class indices, one per prediction."
        )
    classes = 2 if single else outputs.shape[1]
    labels = labels.long()  # a byte cannot be compared with 300
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(
            f"Labels must be between 0 and {classes - 1}, as the model tells {classes} classes apart: "
            f"got {int(labels.min())} to {int(labels.max())}. Leave out samples that are to be ignored."
        )
    return labels


def _error(name: str, reference: Tensor, transformed: Tensor) -> Tensor:
    """The errors under some elements, ``(K, N)``, of outputs ``(N, C, ...)`` and ``(K, N, C, ...)`` in float64."""
    error: Any = _ERRORS[name]
    if name == "normalized_logit_error":  # however small the outputs are
        error = partial(normalized_logit_error, eps=_LEAST_SQUARED_NORM)
    values: Tensor = error(reference.expand_as(transformed).flatten(0, 1), transformed.flatten(0, 1))
    return _finite(name, values).view(transformed.shape[:2])


def _finite(name: str, values: Tensor) -> Tensor:
    """The values in float64, if none overflowed."""
    if not values.square().isfinite().all():  # as standard errors need their squares
        reason = f"{name} overflows, even in float64"
        raise NotFiniteError(f"{reason}. Scale the model's outputs down.", reason)
    return values.double()


def _mean(values: Tensor, of_identity: float) -> Tensor:
    """The mean over elements, ``(K, N)`` to ``(N,)``; a group of the identity alone has what that would have given."""
    return values.mean(0) if len(values) else values.new_full(values.shape[1:], of_identity)


def _apart(moved: Batch, inputs: Batch) -> Batch:
    """What shares no memory with the inputs, which a model that writes into its own must not spoil."""
    memory = {tensor.untyped_storage().data_ptr() for _, tensor in tensors(inputs)}
    return map_tensors(lambda t: t.clone() if t.untyped_storage().data_ptr() in memory else t, moved)


def _relative_change(inputs: Batch, moved: Batch, back: Batch) -> Tensor:
    """The norm of ``back - inputs`` relative to that of the inputs, or of ``moved`` for inputs of zeros; ``(N,)``."""
    rows, between, returned = (_rows(batch) for batch in (inputs, moved, back))
    norm = rows.norm(dim=1)
    norm = torch.where(norm == 0, between.norm(dim=1), norm)
    change = (returned - rows).norm(dim=1) / norm
    return torch.where(norm == 0, 0.0, change)


def _rows(batch: Batch) -> Tensor:
    """All floating-point entries of each sample, or all entries if there are no such; ``(N, entries)``, float64."""
    found = [tensor for _, tensor in tensors(batch)]
    floating = [tensor for tensor in found if tensor.is_floating_point()]
    return torch.cat([tensor.double().flatten(1) for tensor in floating or found], 1)


def _share(hits: Tensor, start_dim: int) -> Tensor:
    """The share of hits over the axes from ``start_dim`` on, in float64; the hits themselves where there are none."""
    return hits.double().flatten(start_dim).mean(start_dim) if hits.ndim > start_dim else hits.double()
