"""How is a model measured over a data loader?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from invreg.audit.batches import batches
from invreg.audit.moments import Moments
from invreg.audit.report import ElementReport, Estimate, InvarianceReport
from invreg.functional import (
    Model,
    checked_outputs,
    distribution_error,
    has_single_logit,
    logit_error,
    normalized_logit_error,
    predicted_class,
)
from invreg.groups import Group, IndexedTransformations, OnKeys, Transformations, TransformationSet
from invreg.groups.batch import Batch, first_tensor, map_tensors, tensors
from invreg.groups.transformations import checked
from invreg.losses import check_draw
from invreg.preserve import preserved
from invreg.saliency import MapMethod, SaliencyMap, completeness_gap, saliency_similarity

_ERRORS = {
    "logit_error": logit_error,
    "distribution_error": distribution_error,
    "normalized_logit_error": normalized_logit_error,
}
_MAPS = "Making saliency maps"
_OF_ACTION = ("action_error", "action_logit_error")
_OF_ELEMENT = (*_ERRORS, "saliency_similarity", "accuracy", "consistency", *_OF_ACTION)
_OVERALL = (*_OF_ELEMENT, "group_accuracy", "orbit_accuracy")
"""The estimates of a report, by the names of its fields."""

_DRAWN_AT_ONCE = 256
"""For how many samples elements are drawn at once."""


def measure_invariance(
    model: Model,
    loader: Iterable[Any],
    group: Transformations,
    *,
    saliency: MapMethod | Literal["paper"] | None = "paper",
    saliency_samples: int | None = 256,
    samples: int | None = None,
    rng: torch.Generator | None = None,
    mode: Literal["eval", "train"] = "eval",
    device: torch.device | str | None = None,
    input_key: str | Sequence[str] = "inputs",
    label_key: str = "labels",
    progress: bool = True,
) -> InvarianceReport:
    """Measures how invariant a classifier is to a group, over all the data that a loader yields.

    The model is called as ``model(x)``, without gradients, once per batch and element. It is found afterwards as it
    was: modes, buffers, gradients, and torch's random numbers too, also if something raises; its hooks fire. Memory
    does not grow with the data.

    Args:
        model: Any callable from inputs ``(N, ...)`` to logits ``(N, C)``; ``(N, 1)`` or ``(N,)`` for a single logit,
            whose sigmoid is the probability of class 1; or ``(N, C, ...)`` with a prediction per position, which must
            not move with the input (segmentation). A callable that is no module is called as it is: put the network
            inside it into eval mode yourself.
        loader: Yields batches: inputs, or ``(inputs, labels)``, or a mapping. Inputs are floating point, ``(N, ...)``,
            or for ``OnKeys`` a mapping, tuple or list of tensors; labels are class indices in the shape of the
            predictions, ``(N,)``; for a single logit also 0.0 and 1.0.
        group: The group, or a ``TransformationSet``. Under a group that is not ``exact`` the report also says how much
            the action itself loses, for which one more forward per batch and element is made.
        saliency: How to make the maps for SI: ``"paper"`` for ``SaliencyMap()``, another map method, or None to
            leave SI out. It is by far the most expensive part. The class to explain is the label or, without labels,
            the model's own prediction at ``x``. ``OnKeys``, and a ``TransformationSet`` that does not say how it moves
            maps, have none.
        saliency_samples: On how many samples, the first ones, SI is measured; None stands for all.
        samples: Non-identity elements drawn for each sample, without replacement; None measures all of a finite group.
        rng: Where drawn elements come from; None uses a generator with a fixed seed, so that audits can be repeated.
        mode: The mode to measure a module in. In ``"train"`` its buffers are put back too.
        device: Where to move the batches; None stands for where the module's first parameter is.
        input_key: Where a mapping has the inputs; several keys make a dict of their entries, for ``OnKeys``.
        label_key: Where a mapping has the labels, if it has any.
        progress: Whether to show a progress bar, on a terminal only.

    Returns:
        The report. For a group of the identity alone, errors are 0 and similarities 1.

    Raises:
        TypeError: Inputs or outputs are not floating-point tensors, labels are no class indices, a batch is none of
            the forms above, or an argument is of another kind than said.
        ValueError: The loader is empty, shapes or labels do not fit, outputs are not finite (the message names the
            sample and the element), ``samples`` does not suit the group, or SI is asked of outputs per position.
        RuntimeError: The model raised; the message names the element, and the model's own error is the cause.

    Source: Moskalev et al. (2023), section 3.1; averages leave the identity out.

    Example:
        >>> from invreg import CyclicRotation
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> loader = [(torch.randn(16, 1, 8, 8), torch.randint(10, (16,))) for _ in range(3)]
        >>> report = measure_invariance(model, loader, CyclicRotation(4))
        >>> report.samples, report.elements, report.logit_error.mean > 0
        (48, 3, True)
    """
    check_draw(group, samples, rng)
    if mode not in ("eval", "train"):
        raise ValueError(f'mode must be "eval" or "train": got {mode!r}.')
    if not callable(model):
        raise TypeError(f"model must be a callable from inputs to logits: got {type(model).__name__}.")
    if isinstance(saliency, type) or not (saliency is None or saliency == "paper" or callable(saliency)):
        raise ValueError(
            f'saliency must be "paper", None or a callable (model, inputs, target) -> maps: got {saliency!r}.'
        )
    if saliency_samples is not None and saliency_samples < 1:
        raise ValueError(f"saliency_samples must be 1 or more, or None for all: got {saliency_samples}.")
    mapless = isinstance(group, OnKeys) or (isinstance(group, TransformationSet) and not group.realigns)
    if mapless and saliency == "paper":
        saliency = None
    if isinstance(group, OnKeys) and saliency is not None:
        raise ValueError(f"Saliency maps are made for inputs of one tensor, not for {group!r}: set saliency=None.")
    if device is None and isinstance(model, nn.Module):
        device = next((parameter.device for parameter in model.parameters()), None)
    audit = _Audit(
        model,
        group,
        map_method=SaliencyMap() if saliency == "paper" else saliency,
        saliency_samples=saliency_samples,
        samples=samples,
        rng=torch.Generator().manual_seed(0) if rng is None else rng,
    )
    stream = batches(loader, input_key=input_key, label_key=label_key, device=device, progress=progress)
    with preserved(model, training=mode == "train"):
        for inputs, labels in stream:
            audit.add(inputs, labels)
    return audit.report()


class _Audit:
    """What the batches seen so far have shown."""

    def __init__(
        self,
        model: Model,
        group: Transformations,
        *,
        map_method: MapMethod | None,
        saliency_samples: int | None,
        samples: int | None,
        rng: torch.Generator,
    ) -> None:
        self.model = model
        self.group = group
        self.map_method = map_method
        self.saliency_samples = saliency_samples
        self.samples = samples
        self.rng = rng
        self.drawn = group.sample_non_identity(0, samples, rng) if samples else torch.empty(0, 0)
        self.seen = 0
        self.elements = 0
        self.gap = torch.zeros(2, dtype=torch.float64)
        self.over_samples: dict[str, Moments] = {}
        self.by_element: dict[str, Moments] = {}

    def add(self, inputs: Batch, labels: Tensor | None) -> None:
        """Measures one batch."""
        if self.seen and (labels is None) == ("accuracy" in self.over_samples):
            raise ValueError(
                f"Either every batch has labels or none: it changes after {self.seen} samples. Audit them apart."
            )
        rows = len(self.group._check_batch(inputs))
        elements = self._elements(rows, first_tensor(inputs).device)
        with torch.no_grad():
            # A model that writes into its input must not spoil the data.
            reference = self._outputs(map_tensors(torch.clone, inputs))
            outputs, returned, changes = [], [], []
            for g in elements:
                moved = self._act(g, inputs)
                if isinstance(self.group, Group) and not self.group.exact:
                    back = self._act(self.group.inverse(g), moved)
                    changes.append(_relative_change(inputs, moved, back))
                    returned.append(self._outputs(back, g))
                outputs.append(self._outputs(_apart(moved, inputs), g))
            if any(out.shape != reference.shape for out in outputs):
                shapes = sorted({tuple(out.shape) for out in (reference, *outputs)})
                raise ValueError(f"The model must return one shape for inputs of one shape: got {shapes}.")
            transformed = torch.stack(outputs) if outputs else reference[None, :][:0]
            self._check_finite("The model's outputs", elements, reference, transformed)
            predictions = predicted_class(reference)
            if labels is not None:
                labels = _class_indices(labels, reference, predictions)
            self._add_errors(elements, reference, transformed)
            if isinstance(self.group, Group) and not self.group.exact:
                self._add_action_errors(elements, reference, changes, returned)
            self._add_predictions(elements, predictions, transformed, labels)
        left = rows if self.saliency_samples is None else min(self.saliency_samples - self.seen, rows)
        if self.map_method is not None and left > 0:
            if not isinstance(inputs, Tensor):
                raise ValueError(
                    f"Saliency maps are made for inputs of one tensor, not {type(inputs).__name__}: set saliency=None."
                )
            if predictions.ndim > 1:
                raise ValueError(
                    "Saliency maps explain one prediction per sample, but the model returns outputs of shape "
                    f"{tuple(reference.shape)}: set saliency=None."
                )
            target = None if has_single_logit(reference) else (predictions if labels is None else labels)[:left]
            drawn = elements if self.samples is None else elements[:, :left]
            self._add_similarity(self.map_method, drawn, inputs[:left], target)
        self.seen += rows
        self.elements = len(elements)

    def report(self) -> InvarianceReport:
        """What the batches have shown, all together."""
        per_element = []
        for element in range(1, self.group.order) if isinstance(self.group, IndexedTransformations) else ():
            found = {name: moments.estimate(element) for name, moments in self.by_element.items()}
            if found["logit_error"] is not None:
                per_element.append(ElementReport(element=element, **_named(_OF_ELEMENT, found)))
        found = {name: moments.estimate() for name, moments in self.over_samples.items()}
        gap, change = self.gap.tolist()
        return InvarianceReport(
            model=getattr(self.model, "__name__", type(self.model).__name__),
            group=repr(self.group),
            samples=self.seen,
            elements=self.elements,
            is_group=isinstance(self.group, Group),
            exhaustive=self.elements == self.group.order - 1,
            saliency=None if self.map_method is None else repr(self.map_method),
            completeness_gap=gap / change if change else None,
            per_element=tuple(per_element),
            **_named(_OVERALL, found),
        )

    def _elements(self, rows: int, device: torch.device) -> Tensor:
        """The elements to measure a batch under: ``(K,)``, or ``(K, N, *element_shape)`` if drawn for each sample."""
        if self.samples is None:
            if not isinstance(self.group, IndexedTransformations):  # the identity alone
                return torch.empty(0, *self.group.element_shape, dtype=self.group.element_dtype)
            return self.group.non_identity_elements()
        while self.drawn.shape[1] < rows:  # by blocks, so that how data are cut into batches changes nothing
            self.drawn = torch.cat([self.drawn, self._draw(_DRAWN_AT_ONCE, self.samples)], 1)
        drawn, self.drawn = self.drawn[:, :rows], self.drawn[:, rows:]
        return drawn.to(device)

    def _draw(self, rows: int, samples: int) -> Tensor:
        return self.group.sample_non_identity(rows, samples, self.rng)

    def _act(self, element: Tensor, inputs: Batch) -> Batch:
        try:
            return checked(self.group, self.group.act(element, inputs), inputs)
        except (TypeError, ValueError):  # bad input, which the group explains
            raise
        except Exception as error:
            raise RuntimeError(
                f"The action failed on {self._under(element)}, shape {_shape(inputs)}: {error}"
            ) from error

    def _outputs(self, inputs: Batch, element: Tensor | None = None) -> Tensor:
        return checked_outputs(self._call("The model", self.model, inputs, element), len(first_tensor(inputs)))

    def _call(self, what: str, function: Callable[[Batch], Any], inputs: Batch, element: Tensor | None) -> Any:
        """Calls the user's code on a batch under an element."""
        try:
            return function(inputs)
        except Exception as error:
            raise RuntimeError(f"{what} failed on {self._under(element)}, shape {_shape(inputs)}: {error}") from error

    def _under(self, element: Tensor | None) -> str:
        """Which inputs these are, for a message."""
        if element is None:
            return "the inputs as they are"
        one = element.shape == self.group.element_shape
        return f"inputs under {f'element {element.tolist()}' if one else 'drawn elements'} of {self.group!r}"

    def _check_finite(self, what: str, elements: Tensor, reference: Tensor, transformed: Tensor) -> None:
        """Raises unless all values are finite, at the identity ``(N, ...)`` and under the elements ``(K, N, ...)``."""
        if reference.isfinite().all() and transformed.isfinite().all():
            return
        for values, g in ((reference, None), *zip(transformed, elements, strict=True)):
            finite = values.isfinite().reshape(len(values), -1).all(1)
            if not finite.all():
                row = int((~finite).nonzero()[0])
                raise ValueError(
                    f"{what} must be finite: they are not for sample {self.seen + row} of the data (row {row} of its "
                    f"batch), {self._under(g if g is None or self.samples is None else g[row])}. "
                    "Look at this sample, or leave it out."
                )

    def _add_errors(self, elements: Tensor, reference: Tensor, transformed: Tensor) -> None:
        for name, error in _ERRORS.items():
            values = error(reference.expand_as(transformed).flatten(0, 1), transformed.flatten(0, 1))
            self._add(name, elements, values.view(transformed.shape[:2]), of_identity=0.0)

    def _add_action_errors(
        self, elements: Tensor, reference: Tensor, changes: list[Tensor], returned: list[Tensor]
    ) -> None:
        """Adds how far inputs moved and moved back are from the inputs, and the outputs at them from ``reference``."""
        none = reference.new_empty(0, len(reference))
        self._check_finite(
            "Inputs", elements, none.new_zeros(len(reference)), torch.stack([*changes]) if changes else none
        )
        outputs = torch.stack(returned) if returned else reference[None, :][:0]
        self._check_finite("The model's outputs at inputs moved and moved back", elements, reference, outputs)
        errors = [logit_error(reference, output) for output in returned]
        for name, values in (("action_error", changes), ("action_logit_error", errors)):
            self._add(name, elements, torch.stack(values) if values else none, of_identity=0.0)

    def _add_predictions(
        self, elements: Tensor, predictions: Tensor, transformed: Tensor, labels: Tensor | None
    ) -> None:
        changed = predicted_class(transformed.flatten(0, 1)).view(len(elements), *predictions.shape)
        self._add("consistency", elements, _share(changed == predictions, 2), of_identity=1.0)
        if labels is None:
            return
        at_identity, right = predictions == labels, changed == labels
        accuracy = _share(at_identity, 1)
        by_element = _share(right, 2)
        self._add_over_samples("accuracy", accuracy)
        self._add_by_element("accuracy", elements, by_element)
        # The identity is one of the group's elements: 1 of `order`, or none of infinitely many.
        weight = 1 / self.group.order
        average = by_element.mean(0) if len(elements) else accuracy
        self._add_over_samples("group_accuracy", weight * accuracy + (1 - weight) * average)
        self._add_over_samples("orbit_accuracy", _share(at_identity & right.all(0), 1))

    def _add_similarity(self, method: MapMethod, elements: Tensor, inputs: Tensor, target: Tensor | None) -> None:
        if isinstance(method, SaliencyMap) and method.attribution is None:
            attributions = self._call(_MAPS, lambda x: method.attribute(self.model, x, target), inputs, None)
            reference = method.fold(attributions)
            self.gap += completeness_gap(self.model, inputs, attributions, target).sum(1).double().cpu()
        else:
            reference = self._map(method, inputs, target, None)
        realigned = reference.new_empty(0, *reference.shape)
        if len(elements):
            maps = (self._map(method, self._act(g, inputs), target, g) for g in elements)
            realigned = torch.stack([self.group.realign(g, m) for g, m in zip(elements, maps, strict=True)])
        self._check_finite("Saliency maps", elements, reference, realigned)
        values = saliency_similarity(reference.expand_as(realigned).flatten(0, 1), realigned.flatten(0, 1))
        self._add("saliency_similarity", elements, values.view(realigned.shape[:2]), of_identity=1.0)

    def _map(self, method: MapMethod, inputs: Tensor, target: Tensor | None, element: Tensor | None) -> Tensor:
        maps = self._call(_MAPS, lambda x: method(self.model, x, target), inputs, element)
        if not isinstance(maps, Tensor) or maps.ndim == 0 or len(maps) != len(inputs):
            came = f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(f"saliency must return one map per sample, {len(inputs)} here: got {came}.")
        return maps

    def _add(self, name: str, elements: Tensor, values: Tensor, *, of_identity: float) -> None:
        """Adds values of shape ``(K, N)``; a group of the identity alone has what the identity would have given."""
        average = values.double().mean(0) if len(values) else values.new_full(values.shape[1:], of_identity)
        self._add_over_samples(name, average)
        self._add_by_element(name, elements, values)

    def _add_over_samples(self, name: str, values: Tensor) -> None:
        if not values.isfinite().all():
            raise ValueError(
                f"{name} overflows: logits as large as this model's need a wider dtype. Use model.double()."
            )
        moments = self.over_samples.setdefault(name, Moments(1))
        moments.add(values.double().cpu().numpy(), torch.zeros(len(values), dtype=torch.int64).numpy())

    def _add_by_element(self, name: str, elements: Tensor, values: Tensor) -> None:
        if isinstance(self.group, IndexedTransformations) and len(elements):
            moments = self.by_element.setdefault(name, Moments(self.group.order))
            bins = elements.cpu().view(len(elements), -1).expand(values.shape)
            moments.add(values.double().flatten().cpu().numpy(), bins.flatten().numpy())


def _named(names: tuple[str, ...], found: dict[str, Estimate | None]) -> dict[str, Any]:
    """The estimates of these names; None for what was not measured."""
    return {name: found.get(name) for name in names}


def _class_indices(labels: Tensor, outputs: Tensor, predictions: Tensor) -> Tensor:
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
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(
            f"Labels must be between 0 and {classes - 1}, as the model tells {classes} classes apart: "
            f"got {int(labels.min())} to {int(labels.max())}. Leave out samples that are to be ignored."
        )
    return labels.long()


def _shape(inputs: Batch) -> Any:
    """The shape of the inputs, or of each of their tensors, for a message."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors(inputs)}
    return shapes.get(None, shapes)


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
