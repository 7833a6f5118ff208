"""How is a command carried out?"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch
from torch import nn
from torch.utils.data import DataLoader

from invreg.audit.layers import measure_layers
from invreg.audit.progress import InvarianceAudit
from invreg.cli.arguments import UsageError, parser
from invreg.cli.bounds import bounds_of
from invreg.cli.data import Preparation, Samples, open_samples
from invreg.cli.groups import list_groups, parse_group
from invreg.cli.models import load_model
from invreg.cli.positions import in_the_data
from invreg.groups import IndexedTransformations, Transformations

if TYPE_CHECKING:
    from invreg.audit.layer_report import LayersReport
    from invreg.audit.report import InvarianceReport
    from invreg.functional import Model

_BEYOND, _FAILED, _INTERRUPTED = 1, 2, 130
"""Exit codes: beyond a bound, not measured, and interrupted as shells have it."""

_DRAWN = 4
"""How many elements are drawn for each sample where there are too many to measure all."""

_LONGEST_ERROR = 1_000
"""Where messages are cut, in characters."""


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out a command.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit code; ``invreg audit --help`` explains them.
    """
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        try:
            arguments = parser().parse_args(argv)
            arguments.command_line = shlex.join(["invreg", *(sys.argv[1:] if argv is None else argv)])
        except SystemExit as leaving:  # after --help and --version
            _flush()
            return int(leaving.code or 0)
        if arguments.command == "groups":
            _say(list_groups())
            return 0
        with _importable(os.getcwd()), torch.random.fork_rng(devices=[]):
            return _audit(arguments)
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED
    except Exception as error:
        if debug:
            _write(sys.stderr, traceback.format_exc())
        _complain(f"error: {_in_words(error)}")
        return _FAILED


def _audit(arguments: Namespace) -> int:
    """Measures, prints and writes what was asked for."""
    torch.manual_seed(arguments.seed)
    _check(arguments)
    group = parse_group(arguments.group)
    model = load_model(arguments.model, weights=arguments.weights, device=arguments.device)
    if arguments.layers and not isinstance(model, nn.Module):
        raise UsageError(f"--layers takes an nn.Module, whose layers are known: got {type(model).__name__}.")
    samples = _samples(arguments, model)
    drawn = _drawn(group) if arguments.samples is None else arguments.samples
    audit = InvarianceAudit(
        model,
        group,
        outputs=arguments.outputs,
        saliency="paper" if arguments.saliency else None,
        samples=drawn,
        rng=torch.Generator().manual_seed(arguments.seed),
        device=arguments.device,
        on_error=arguments.on_error,
    )
    interrupted = False
    try:
        audit.run(
            DataLoader(samples, arguments.batch_size),
            target_precision=arguments.precision,
            checkpoint=arguments.checkpoint,
        )
    except KeyboardInterrupt:
        interrupted = True
    except RuntimeError as error:
        if samples.files is None or arguments.grey:
            raise
        raise RuntimeError(
            f"{error} (Pictures are read as RGB: --grey makes one channel; --size sets H x W.)"
        ) from error
    found = _found(audit, interrupted)
    report = in_the_data(found, samples)
    report = replace(report, provenance={**report.provenance, "command": arguments.command_line})
    _say(str(report))
    layers, failure = None, None
    if arguments.layers and not interrupted:
        try:
            layers = _layers(arguments, model, group, drawn, _measured(found, samples))
            _say(f"\n{layers}")
        except KeyboardInterrupt:
            interrupted = True
            _complain("interrupted while the layers were measured: the report is without them")
        except Exception as error:  # which costs no file
            failure = error
    _write_files(arguments, report, layers)
    if failure is not None:
        raise failure
    if interrupted:
        if report.ended == "interrupted":
            again = "" if arguments.checkpoint is None else "; the same command goes on from there"
            _complain(f"interrupted: the report is partial, of the samples until then{again}")
        return _INTERRUPTED
    return _judge(arguments, report)


def _found(audit: InvarianceAudit, interrupted: bool) -> InvarianceReport:
    """What an audit has measured so far."""
    try:
        return audit.report()
    except ValueError as error:
        if interrupted:  # before the first batch was measured
            raise KeyboardInterrupt from error
        raise


def _check(arguments: Namespace) -> None:
    """Raises what can be known to fail before anything is measured."""
    for option in ("html", "json", "markdown", "checkpoint"):
        file = getattr(arguments, option)
        if file is not None and (Path(file).is_dir() or not Path(file).absolute().parent.is_dir()):
            raise UsageError(f"--{option} must be a file in a folder that exists: got {file}.")
    if arguments.html is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--html draws figures, for which matplotlib is needed: pip install matplotlib.")
    if arguments.outputs == "values":
        names = [bound.name for bound in bounds_of(arguments.max_error, arguments.min_consistency)]
        if unknown := [name for name in names if name in ("distribution_error", "consistency")]:
            raise UsageError(f"--outputs values are no logits, and have no {unknown[0]} to be bounded.")
        if arguments.saliency:
            raise UsageError("--outputs values have no classes to explain: leave --saliency out.")
    if min(arguments.std) <= 0:
        raise UsageError(f"--std must be above 0, to divide by: got {min(arguments.std):g}.")


def _samples(arguments: Namespace, model: Model) -> Samples:
    """The data, as the model takes them."""
    preparation = Preparation(
        grey=arguments.grey, size=arguments.size, mean=arguments.mean, std=arguments.std, dtype=_dtype(model)
    )
    samples = open_samples(
        arguments.data,
        preparation,
        labels=arguments.labels,
        input_key=arguments.input_key,
        label_key=arguments.label_key,
        unlabelled=arguments.no_labels or arguments.outputs == "values",
    )
    if arguments.limit is None and arguments.precision is None and not arguments.saliency:
        return samples
    # Some stand for all then, and data often come class by class.
    return samples.reordered(arguments.limit, arguments.seed)


def _dtype(model: Model) -> torch.dtype:
    """What a module computes in."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((one.dtype for one in parameters if one.is_floating_point()), torch.float32)


def _drawn(group: Transformations) -> int | None:
    """How many elements are measured where nothing is said; None for all."""
    if isinstance(group, IndexedTransformations) or group.order == 1:
        return None
    return int(min(_DRAWN, group.order - 1))


def _measured(found: InvarianceReport, samples: Samples) -> Samples:
    """The samples that an audit has measured: not those that it skipped, nor those that came after its end."""
    return samples.at(found.per_sample["index"].tolist())


def _layers(
    arguments: Namespace, model: Model, group: Transformations, drawn: int | None, samples: Samples
) -> LayersReport:
    return measure_layers(
        model,
        DataLoader(samples, arguments.batch_size),
        group,
        samples=drawn,
        rng=torch.Generator().manual_seed(arguments.seed),
        device=arguments.device,
    )


def _write_files(arguments: Namespace, report: InvarianceReport, layers: LayersReport | None) -> None:
    """Writes each file that was asked for, also if another one cannot be written."""
    more = "" if layers is None else f"\n## Layers\n\n```\n{layers}\n```\n"
    ways: dict[str, Callable[[str], None]] = {
        "json": lambda file: _save(file, report.to_json() + "\n"),
        "markdown": lambda file: _save(file, report.to_markdown() + more),
        "html": lambda file: report.to_html(file, layers=layers),
    }
    failures = []
    for option, write in ways.items():
        try:
            if getattr(arguments, option) is not None:
                write(getattr(arguments, option))
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _save(file: str, text: str) -> None:
    Path(file).write_text(text, encoding="utf-8", errors="replace")


def _judge(arguments: Namespace, report: InvarianceReport) -> int:
    """Says which bounds are kept; the exit code."""
    verdicts = [bound.judged(report.estimates) for bound in bounds_of(arguments.max_error, arguments.min_consistency)]
    for verdict in verdicts:
        if verdict.kept:
            _say(f"\n{verdict.text}")
        else:
            _complain(verdict.text)
    return 0 if all(verdict.kept for verdict in verdicts) else _BEYOND


# What is said, and to whom


def _say(text: str) -> None:
    """Prints to standard output, which somebody may have closed."""
    _write(sys.stdout, f"{text}\n")


def _complain(text: str) -> None:
    with suppress(OSError):
        _write(sys.stderr, f"invreg: {text}\n")


def _write(stream: TextIO | None, text: str) -> None:
    """Writes what the stream's encoding can say of a text."""
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()
    except (BrokenPipeError, ValueError):  # nobody reads on, or the stream is closed
        _forget(stream)


def _flush() -> None:
    if sys.stdout is not None:
        _write(sys.stdout, "")


def _forget(stream: TextIO) -> None:
    """Leads a stream into nothing, so that nothing fails when Python closes it."""
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def _in_words(error: Exception) -> str:
    """An error on one line."""
    words = " ".join(str(error).split())
    if not isinstance(error, (ValueError, TypeError, OSError, RuntimeError)) or not words:
        words = f"{type(error).__name__}: {words}"
    return words if len(words) <= _LONGEST_ERROR else f"{words[:_LONGEST_ERROR]} ... (--debug shows all)"


@contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Modules in this folder can be imported, as ``python -m`` has it too."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
