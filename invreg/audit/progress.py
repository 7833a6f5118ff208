"""How far has an audit come, and what has it found so far?"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from invreg.audit import checkpoint as checkpoints
from invreg.audit.batches import Loaded, check_loader, dealt, described, loaded
from invreg.audit.draws import Draws
from invreg.audit.estimate import Estimate
from invreg.audit.evaluate import Evaluation, Measured, NotFiniteError, OutputAction
from invreg.audit.histogram import LogHistogram
from invreg.audit.interrupts import held_back
from invreg.audit.ranks import gathered, place
from invreg.audit.report import InvarianceReport, SliceReport
from invreg.audit.samples import SkippedSamples
from invreg.audit.settings import check_same, fingerprint, fingerprint_of_data, in_words, name_of
from invreg.audit.tally import OF_ELEMENT, OVER_SAMPLES, Tally
from invreg.audit.tolerant import CutShortError
from invreg.functional import Model
from invreg.groups import Group, IndexedTransformations, OnKeys, Transformations, TransformationSet
from invreg.groups.batch import Batch, first_tensor, map_tensors, tensors
from invreg.groups.same_elements import compose_alike
from invreg.losses import check_draw
from invreg.preserve import preserved
from invreg.saliency import MapMethod, SaliencyMap

_PRECISE = ("logit_error", "distribution_error", "normalized_logit_error")
"""The numbers that a target precision is about."""

_LEAST_SAMPLES = 100
"""How many samples are measured before a standard error is believed, or before all are thought to fail."""

_SAVED_EVERY = 20.0
"""After how many seconds an audit is saved again."""


Ended = Literal["complete", "precise", "interrupted"]


class InvarianceAudit:
    """An audit in progress, which can be interrupted, saved, loaded and merged with others.

    ``measure_invariance`` makes one, runs it and returns its report. Use this class where data come otherwise than by
    a loader, or where several audits are put together.

    Args:
        model: As in ``measure_invariance``; so are all others.
        group: The group.
        output_action: How it acts on outputs.
        outputs: Whether outputs are logits.
        saliency: How to make maps.
        saliency_samples: On how many samples.
        samples: How many elements are drawn for each sample.
        rng: Where they come from.
        mode: The mode to measure a module in.
        device: Where to move the batches.
        worst_samples: How many of the least invariant samples are kept.
        kept_samples: Of how many samples numbers are kept.
        on_error: What to do with samples that fail.
        distributed: Whether the audits of all processes make one report.

    Raises:
        TypeError: As ``measure_invariance``.
        ValueError: As ``measure_invariance``.

    Example:
        >>> from invreg import Flip
        >>> model = torch.nn.Linear(4, 3)
        >>> first, second = (InvarianceAudit(model, Flip(), saliency=None) for _ in range(2))
        >>> first.update(torch.randn(5, 4))
        >>> second.update(torch.randn(2, 4))
        >>> first.merge(second)
        >>> first.report().samples
        7
    """

    def __init__(
        self,
        model: Model,
        group: Transformations,
        *,
        output_action: OutputAction | None = None,
        outputs: Literal["logits", "values"] = "logits",
        saliency: MapMethod | Literal["paper"] | None = "paper",
        saliency_samples: int | None = 256,
        samples: int | None = None,
        rng: torch.Generator | None = None,
        mode: Literal["eval", "train"] = "eval",
        device: torch.device | str | None = None,
        worst_samples: int = 10,
        kept_samples: int = 100_000,
        on_error: Literal["raise", "skip"] = "raise",
        distributed: bool = True,
    ) -> None:
        check_draw(group, samples, rng)
        if not callable(model):
            raise TypeError(f"model must be a callable from inputs to logits: got {type(model).__name__}.")
        _check_choice("mode", mode, ("eval", "train"))
        _check_choice("on_error", on_error, ("raise", "skip"))
        _check_choice("outputs", outputs, ("logits", "values"))
        if isinstance(saliency, type) or not (saliency is None or saliency == "paper" or callable(saliency)):
            raise ValueError(
                f'saliency must be "paper", None or a callable (model, inputs, target) -> maps: got {saliency!r}.'
            )
        for name, number, least in (
            ("saliency_samples", saliency_samples, 1),
            ("worst_samples", worst_samples, 0),
            ("kept_samples", kept_samples, 0),
        ):
            if isinstance(number, bool) or not isinstance(number, (int, NoneType)):
                raise TypeError(f"{name} must be a whole number: got {number!r}.")
            if number is not None and number < least:
                none = ", or None for all" if name == "saliency_samples" else ""
                raise ValueError(f"{name} must be {least} or more{none}: got {number}.")
        _check_output_action(group, output_action)
        mapless = (
            isinstance(group, OnKeys)
            or (isinstance(group, TransformationSet) and not group.realigns)
            or outputs == "values"
            or output_action is not None
        )
        if mapless and saliency == "paper":
            saliency = None
        if saliency is not None and outputs == "values":
            raise ValueError('Saliency maps explain a class, and outputs="values" have none: set saliency=None.')
        if saliency is not None and isinstance(group, OnKeys):
            raise ValueError(f"Saliency maps are made for inputs of one tensor, not for {group!r}: set saliency=None.")
        if device is None and isinstance(model, nn.Module):
            device = next((parameter.device for parameter in model.parameters()), None)
        rank, world = place(distributed=distributed)
        self.ended: Ended = "complete"
        self._model = model
        self._group = group
        self._evaluation = Evaluation(
            model, group, output_action, outputs, SaliencyMap() if saliency == "paper" else saliency
        )
        self._saliency_samples = saliency_samples
        self._samples = samples
        self._mode = mode
        self._device = device
        self._on_error = on_error
        self._rank, self._world = rank, world
        self._tally = Tally(group, worst_samples=worst_samples, kept_samples=kept_samples)
        rng = torch.Generator().manual_seed(0) if rng is None else rng
        self._draws = Draws(group, samples, rng, rank=rank, world=world)
        self._seen = 0
        self._lost = 0  # batches that a loader did not yield, of samples that nobody has counted
        self._data = ""
        self._random_numbers: list[Tensor] | None = None  # torch's, after the last batch
        self._to_restore: list[Tensor] | None = None
        self._provenance: dict[str, Any] = {
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "data": "batches, one by one",
            "input_shape": "",
            "device": str(device or "cpu"),
            "seed": rng.initial_seed() if samples else None,
            **_versions(),
        }

    def run(
        self,
        loader: Iterable[Any],
        *,
        target_precision: float | None = None,
        checkpoint: str | PathLike[str] | None = None,
        input_key: str | Sequence[str] = "inputs",
        label_key: str = "labels",
        progress: bool = True,
    ) -> None:
        """Measures all that a loader yields.

        When it is interrupted, by Ctrl-C or an error, what was measured before stays in the audit: ``report()`` tells
        it and says that it is partial.

        Args:
            loader: As in ``measure_invariance``; so are the others.
            target_precision: When to stop early.
            checkpoint: Where to save the audit, and to go on from.
            input_key: Where a mapping has the inputs.
            label_key: Where a mapping has the labels.
            progress: Whether to show a progress bar.

        Raises:
            TypeError: As ``measure_invariance``.
            ValueError: As ``measure_invariance``.
        """
        if isinstance(target_precision, (str, bool)):
            raise TypeError(f"target_precision must be a number, a share of the mean: got {target_precision!r}.")
        if target_precision is not None and not target_precision > 0:
            raise ValueError(f"target_precision must be positive, a share of the mean: got {target_precision}.")

        def work() -> None:
            check_loader(loader)
            path, done = self._resume(checkpoint)
            self._provenance["data"] = described(loader)
            stream = loaded(
                loader,
                input_key=input_key,
                label_key=label_key,
                device=self._device,
                progress=progress and self._rank == 0,
                skip=self._on_error == "skip",
            )
            self._run(stream, dealt(loader, self._world), target_precision, path, done)

        gathered(work, self._world)

    def _run(
        self,
        stream: Iterable[Loaded],
        whole: int | None,
        target_precision: float | None,
        path: Path | None,
        done: tuple[int, int],
    ) -> None:
        """Measures batches, but for the samples and the lost batches that were done before."""
        before, started = self._provenance["seconds"], time.monotonic()
        saved = started
        ended: Ended = "precise" if self._precise(target_precision) else "complete"
        self.ended = "interrupted"
        position, lost = 0, 0
        try:
            with preserved(self._model, training=self._mode == "train"):
                for batch in stream:
                    rows = batch.rows
                    lost += rows == 0
                    if position == 0 and rows and path is not None:
                        self._check_data(batch)
                    if ended == "precise":  # before this batch, that is
                        break
                    if position + rows > done[0] or (rows == 0 and lost > done[1]):
                        self._restore_random_numbers()
                        self._add(batch, start=max(done[0] - position, 0), whole=whole)
                        if path is not None:
                            self._random_numbers = _random_numbers()
                    position += rows
                    self._provenance["seconds"] = before + time.monotonic() - started
                    if path is not None and time.monotonic() - saved > _SAVED_EVERY:
                        checkpoints.write(self.state_dict(), path)
                        saved = time.monotonic()
                    if position >= done[0] and self._precise(target_precision):
                        ended = "precise"
                        break
            if position < done[0] and ended == "complete":
                raise ValueError(
                    f"loader must yield the samples that the checkpoint is of: it yielded {position}, and {done[0]} "
                    "were audited before. Use another checkpoint."
                )
            if self._world == 1:
                self._check_measured(self._tally)
            self.ended = ended
        except CutShortError:  # what came before is told, and said to be partial
            self._check_measured(self._tally)
        finally:
            if path is not None:
                checkpoints.write(self.state_dict(), path)

    def update(self, inputs: Batch, labels: Tensor | None = None) -> None:
        """Measures one batch.

        Args:
            inputs: As a loader yields them; moved to the audit's device.
            labels: Their classes, or None.

        Raises:
            TypeError: As ``measure_invariance``.
            ValueError: As ``measure_invariance``.
        """
        batch = [inputs if labels is None and isinstance(inputs, Tensor) else (inputs, labels)]
        stream = loaded(batch, input_key="inputs", label_key="labels", device=self._device, progress=False)
        started = time.monotonic()
        with preserved(self._model, training=self._mode == "train"):
            for one in stream:
                self._restore_random_numbers()
                self._add(one, start=0, whole=None)
            self._random_numbers = self._to_restore = _random_numbers()  # so that the next batch has others
        self._provenance["seconds"] += time.monotonic() - started

    def report(self) -> InvarianceReport:
        """What the batches have shown, all together; under ``torch.distributed``, those of all processes.

        Raises:
            ValueError: Nothing was measured.
        """
        if self._world == 1:
            return self._report(self._tally, self._seen, self.ended)
        parts = gathered(lambda: (self._tally.state_dict(), self._seen, self.ended), self._world)
        tallies = [self._tally_of(state) for state, _, _ in parts]
        for tally in tallies[1:]:
            tallies[0].merge(tally)
        return self._report(tallies[0], sum(seen for _, seen, _ in parts), _least([ended for _, _, ended in parts]))

    def merge(self, other: InvarianceAudit) -> None:
        """Adds what another audit has measured, as if its data had come after this one's.

        Audits that draw elements need generators of different seeds, or else the same ones are drawn for the first
        samples of each; both have saliency maps of as many samples as one would have.

        Args:
            other: An audit of the same model under the same settings.

        Raises:
            TypeError: It is no audit.
            ValueError: Its settings differ.
        """
        if not isinstance(other, InvarianceAudit):
            raise TypeError(f"An audit is merged with another InvarianceAudit: got {type(other).__name__}.")
        check_same(self._settings(), other._settings(), "The audit to merge")
        tally = other._tally_of(other._tally.state_dict())
        tally.shift(self._seen * self._world)
        self._tally.merge(tally)
        self._seen += other._seen
        self.ended = _least([self.ended, other.ended])

    def state_dict(self) -> dict[str, Any]:
        """All that was measured, as tensors, numbers, strings, lists and dictionaries: what ``torch.save`` can save.

        Returns:
            What ``load_state_dict`` takes.
        """
        return {
            "settings": self._settings(),
            "tally": self._tally.state_dict(),
            "seen": self._seen,
            "lost": self._lost,
            "data": self._data,
            "ended": self.ended,
            "noisy": self._evaluation.noisy,
            "draws": self._draws.state_dict(),
            "random_numbers": self._random_numbers,
            "provenance": dict(self._provenance),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Becomes the audit that ``state_dict`` described; further batches are added to it.

        Args:
            state: What ``state_dict`` returned.

        Raises:
            ValueError: It is no audit's, or that of one with other settings or of another model.
        """
        if not isinstance(state, Mapping) or "settings" not in state:
            raise ValueError("An audit is loaded from what state_dict() returned: got something else.")
        check_same(self._settings(), state["settings"], "The saved audit")
        self._tally.load_state_dict(state["tally"])
        self._seen, self._lost = state["seen"], state["lost"]
        self._data, self.ended = state["data"], state["ended"]
        self._evaluation.noisy = state["noisy"]
        self._draws.load_state_dict(state["draws"])
        self._random_numbers = self._to_restore = state["random_numbers"]
        self._provenance |= state["provenance"]

    def _restore_random_numbers(self) -> None:
        """Goes on with the random numbers that a saved audit's model would have drawn next."""
        if self._to_restore is not None:
            own, *others = self._to_restore
            torch.set_rng_state(own)
            for device, numbers in enumerate(others[: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(numbers, device)
            self._to_restore = None

    def _resume(self, checkpoint: str | PathLike[str] | None) -> tuple[Path | None, tuple[int, int]]:
        """The file to save to, and how many samples and lost batches of the loader were saved there before."""
        if checkpoint is None:
            return None, (0, 0)
        self._settings()  # before a forward changes buffers of the model
        path = Path(checkpoint)
        if self._world > 1:
            path = path.with_name(f"{path.name}.rank{self._rank}")
        if not path.parent.is_dir():
            raise ValueError(f"checkpoint must be a file in a folder that exists: got {path}. Make {path.parent}.")
        state = checkpoints.read(path)
        if state is None:
            return path, (0, 0)
        self.load_state_dict(state)
        return path, (self._seen, self._lost)

    def _check_data(self, batch: Loaded) -> None:
        """Raises unless the first batch begins with the sample that the saved audit began with."""
        if batch.inputs is None:
            return
        first = {key: tensor[:1] for key, tensor in tensors(batch.inputs)}
        data = fingerprint_of_data(first, None if batch.labels is None else batch.labels[:1])
        check_same({"first sample": data}, {"first sample": self._data or data}, "The saved audit")
        self._data = data

    def _settings(self) -> dict[str, str]:
        """What two audits must have in common to be put together, in words."""
        evaluation = self._evaluation
        return {
            "group": in_words(self._group),
            "output_action": in_words(evaluation.output_action),
            "outputs": evaluation.outputs,
            "saliency": in_words(evaluation.map_method),
            "saliency_samples": repr(self._saliency_samples),
            "samples": repr(self._samples),
            "mode": self._mode,
            "worst_samples": repr(self._tally.worst_samples),
            "kept_samples": repr(self._tally.kept_samples),
            "model": self._fingerprint,
            "processes": f"{self._rank} of {self._world}",
        }

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self._model)

    def _tally_of(self, state: dict[str, Any]) -> Tally:
        tally = Tally(self._group, worst_samples=self._tally.worst_samples, kept_samples=self._tally.kept_samples)
        tally.load_state_dict(state)
        return tally

    def _add(self, batch: Loaded, *, start: int, whole: int | None) -> None:
        """Measures the rows of a batch from ``start`` on, of which some could not be read.

        All is added at the end, so that an audit that is interrupted holds whole batches.
        """
        inputs, labels, rows = batch.inputs, batch.labels, batch.rows - start
        found: list[Measured | SkippedSamples] = [
            SkippedSamples(self._index(row - start), 1 if one.rows else None, one.reason)
            for one in batch.unreadable
            for row in one.rows or (start,)  # of a batch that was lost as a whole it is not known how many
            if row >= start
        ]
        places = batch.read - start
        wanted = (places >= 0) & (self._index(places) < (float("inf") if whole is None else whole))
        if inputs is not None and bool(wanted.any()):
            self._group._check_batch(inputs)
            self._check_labelled(labels)
            elements = self._draws.following(rows, first_tensor(inputs).device)
            if not wanted.all():
                inputs = map_tensors(lambda t: t[wanted.to(t.device)], inputs)
                labels = None if labels is None else labels[wanted.to(labels.device)]
            if self._samples is not None:
                elements = elements[:, places[wanted].to(elements.device)]
            self._provenance["input_shape"] = str(_row_shape(inputs))
            found += self._measured(inputs, labels, elements, self._index(places[wanted]))
        else:
            self._draws.following(rows, torch.device("cpu"))
        seen = rows if whole is None else int((self._index(torch.arange(rows)) < whole).sum())
        with held_back():
            for part in sorted(found, key=_position):
                self._tally.add(part)
            self._draws.advance(rows)
            self._seen += seen
            self._lost += batch.rows == 0
        if not self._tally.samples and self._tally.skipped_count >= _LEAST_SAMPLES:
            raise RuntimeError(
                f"None of the first {self._tally.skipped_count} samples could be measured. The first one: "
                f"{self._tally.skipped[0].reason}"
            )

    def _check_labelled(self, labels: Tensor | None) -> None:
        logits = self._evaluation.outputs == "logits"
        if logits and self._tally.samples and (labels is not None) != self._tally.labelled:
            raise ValueError(
                f"Either every batch has labels or none: it changes after {self._tally.samples} samples. Audit them "
                "apart."
            )

    def _index(self, rows: Any) -> Any:
        """Positions in the data of the next rows; processes are dealt samples in turn, as torch's sampler does."""
        return (self._seen + rows) * self._world + self._rank

    def _measured(
        self, inputs: Batch, labels: Tensor | None, elements: Tensor, indices: Tensor
    ) -> Iterator[Measured | SkippedSamples]:
        """Measures a batch; where samples that fail are to be skipped, in halves until these are found."""
        limit = self._saliency_samples
        with_maps = len(indices) if limit is None else int((indices < limit).sum())
        try:
            measured = self._evaluation.measure(inputs, labels, elements, indices, with_maps=with_maps)
        except (RuntimeError, NotFiniteError) as error:
            if self._on_error == "raise" or isinstance(error, torch.OutOfMemoryError):
                raise
            rows = len(indices)
            if rows == 1:
                yield SkippedSamples(int(indices[0]), 1, " ".join(str(getattr(error, "reason", error)).split()))
                return
            for half in (slice(None, rows // 2), slice(rows // 2, None)):
                yield from self._measured(
                    map_tensors(lambda t, half=half: t[half], inputs),
                    None if labels is None else labels[half],
                    elements if self._samples is None else elements[:, half],
                    indices[half],
                )
        else:
            yield measured

    def _precise(self, target: float | None) -> bool:
        """Whether each error's standard error is at most this share of its mean.

        Each of several processes knows less than all together, and as much less is asked of it.
        """
        if target is None or self._tally.samples < _LEAST_SAMPLES:
            return False
        found = [estimate for name in _PRECISE if (estimate := self._tally.estimate(name)) is not None]
        slack = target * self._world**0.5
        return all(one.standard_error is not None and one.standard_error <= slack * one.mean for one in found)

    def _check_measured(self, tally: Tally) -> None:
        if not tally.samples:
            reason = f": all were skipped, the first for: {tally.skipped[0].reason}" if tally.skipped else "."
            raise ValueError(f"At least one sample must be measured: none was{reason}")

    def _report(self, tally: Tally, seen: int, ended: Ended) -> InvarianceReport:
        self._check_measured(tally)
        group, evaluation = self._group, self._evaluation
        elements = range(1, group.order) if isinstance(group, IndexedTransformations) else range(0)
        names = {element: group.describe(torch.tensor(element)) for element in elements}
        labels = [label for label in range(tally.classes) if tally.of_class(label)["logit_error"] is not None]
        gap, change = tally.gap.tolist()
        table = tally.table
        return InvarianceReport(
            model=name_of(getattr(self._model, "_orig_mod", self._model)),  # what was compiled
            group=in_words(group),
            is_group=isinstance(group, Group),
            output_action=_action_in_words(evaluation.output_action),
            seen=seen,
            samples=tally.samples,
            elements=tally.elements,
            exhaustive=tally.elements == group.order - 1,
            ended=ended,
            saliency=None if evaluation.map_method is None else in_words(evaluation.map_method),
            completeness_gap=gap / change if change else None,
            per_element=_slices((names[e], e, None, tally.of_element(e)) for e in elements),
            per_class=_slices((f"class {label}", None, label, tally.of_class(label)) for label in labels),
            classes_by=None if not labels else "label" if tally.labelled else "prediction",
            per_class_element=_slices(
                (f"class {label}, {names[e]}", e, label, tally.of_cell(label, e))
                for label in (labels if tally.has_cells else ())
                for e in elements
            ),
            worst_samples=tuple(tally.worst),
            skipped=tally.skipped_count,
            skipped_samples=tuple(tally.skipped),
            per_sample=table,
            histograms={name: LogHistogram(one.counts) for name, one in tally.histograms.items()},
            provenance={**self._provenance, "parameters": _parameters(self._model)},
            saliency_examples=tally.shown_examples(),
            **{name: tally.estimate(name) for name in OVER_SAMPLES},  # type: ignore[arg-type]  # errors are never None
        )


def _slices(parts: Iterable[tuple[str, int | None, int | None, dict[str, Estimate | None]]]) -> tuple[SliceReport, ...]:
    """The parts that samples fell into."""
    names = (*OF_ELEMENT, "group_accuracy", "orbit_accuracy")
    return tuple(
        SliceReport(name=name, element=element, label=label, **{of: found.get(of) for of in names})  # type: ignore[arg-type]  # errors are never None
        for name, element, label, found in parts
        if found["logit_error"] is not None
    )


def _check_choice(name: str, given: str, choices: tuple[str, ...]) -> None:
    if given not in choices:
        listed = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be {listed}: got {given!r}.")


def _check_output_action(group: Transformations, output_action: OutputAction | None) -> None:
    if output_action is None:
        return
    if isinstance(output_action, type) or not (isinstance(output_action, Group) or callable(output_action)):
        raise TypeError(
            f"output_action must be a group or a callable (element, outputs) -> outputs: got {output_action!r}."
        )
    if not isinstance(group, Group):
        raise ValueError(f"output_action moves outputs back, and {group!r} has no inverses: leave it out.")
    if isinstance(output_action, Group) and not compose_alike(group, output_action):
        raise ValueError(
            f"output_action must have the same elements as the group, composed alike: {output_action!r} has others "
            f"than {group!r}."
        )


def _action_in_words(output_action: OutputAction | None) -> str | None:
    if output_action is None or isinstance(output_action, Group):
        return None if output_action is None else in_words(output_action)
    return name_of(output_action)


def _least(ended: list[Ended]) -> Ended:
    """How audits that are put together ended, which is how the one that came least far did."""
    order: tuple[Ended, ...] = ("interrupted", "precise", "complete")
    return min(ended, key=order.index)


def _parameters(model: Model) -> int | None:
    """How many numbers a module has learned."""
    return sum(parameter.numel() for parameter in model.parameters()) if isinstance(model, nn.Module) else None


def _position(part: Measured | SkippedSamples) -> int:
    """Where in the data it begins."""
    return int(part.indices[0]) if isinstance(part, Measured) else part.index


def _random_numbers() -> list[Tensor]:
    """The states of torch's generators, that of the CPU first."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _row_shape(inputs: Batch) -> Any:
    return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else type(inputs).__name__


@cache
def _versions() -> dict[str, str]:

    try:
        own = version("invreg")
    except PackageNotFoundError:  # run from a folder that was not installed
        own = "unknown"
    return {"invreg": own, "torch": str(torch.__version__), "python": platform.python_version()}
