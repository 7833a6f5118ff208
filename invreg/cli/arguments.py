"""What can be asked for on the command line?"""

from __future__ import annotations

import argparse
import importlib
import re
from math import isfinite
from typing import NoReturn

from invreg.audit.report import WITH_QUANTILES

BOUNDED = WITH_QUANTILES
"""The errors that ``--max-error`` knows."""

_AUDIT_EPILOG = """\
examples:
  invreg audit --model nets:small_cnn --weights small.pt --data photos/ --size 224 --group flip:x
  invreg audit --model nets.py2:ResNet --data test.npz --group C4 --html report.html
  invreg audit --model model.pt2 --data t10k-images-idx3-ubyte.gz --group 'T4:x*T4:y' --json report.json
  invreg audit --model nets:small_cnn --data photos/ --group SO2 --samples 8 --limit 2000 --checkpoint audit.ckpt
  invreg audit --model nets:small_cnn --data photos/ --group D4 --max-error 0.5 --min-consistency 0.95

exit codes:
  0    measured, and within all bounds
  1    measured, but beyond a bound
  2    not measured: an argument, a file, the model or the group does not suit, which one line on stderr explains
  130  interrupted by Ctrl-C; the report is of the samples until then, and says so

"invreg groups" lists the groups.
"""


class UsageError(ValueError):
    """Arguments that do not suit."""


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong with arguments, instead of printing it with the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help explains the arguments)")


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    whole = _Parser(
        prog="invreg",
        description="How invariant is a classifier? Audits from the command line.",
        epilog='"invreg audit --help" explains the audit, with examples.',
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"invreg {importlib.import_module('invreg').__version__}")
    commands = whole.add_subparsers(dest="command", metavar="{audit,groups}", required=True)
    groups = commands.add_parser("groups", help="list the groups", description="Lists what --group takes.")
    groups.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    audit = commands.add_parser(
        "audit",
        help="measure how invariant a model is",
        description="Measures how invariant a classifier is to a group, over pictures or arrays, and prints a report.",
        epilog=_AUDIT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_model(audit)
    _add_data(audit)
    _add_measurement(audit)
    _add_results(audit)
    return whole


def _add_model(audit: argparse.ArgumentParser) -> None:
    model = audit.add_argument_group("the model")
    model.add_argument(
        "--model",
        required=True,
        metavar="MODULE:NAME",
        help="a module or what makes one when called without arguments, importable from here; or a file.pt2 that "
        "torch.export.save wrote",
    )
    model.add_argument("--weights", metavar="FILE", help="weights to load into it: a state_dict, or .safetensors")
    model.add_argument("--device", help="where to compute, such as cuda; default: where the model is")


def _add_data(audit: argparse.ArgumentParser) -> None:
    data = audit.add_argument_group("the data")
    data.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="a folder of pictures, whose sub-folders are the classes in the order of their names; an .npz or .npy "
        "file; or an IDX file of images, gzipped or not",
    )
    labels = data.add_mutually_exclusive_group()
    labels.add_argument("--labels", metavar="FILE", help="the labels, .npy or IDX; default: looked for beside the data")
    labels.add_argument("--no-labels", action="store_true", help="leave labels out, and accuracy with them")
    data.add_argument(
        "--input-key", metavar="KEY", help="which array of an .npz the inputs are; default: x, images ..."
    )
    data.add_argument("--label-key", metavar="KEY", help="which array the labels are; default: y, labels, targets ...")
    data.add_argument(
        "--size",
        type=_size,
        metavar="H[xW]",
        help="scale pictures until they just cover this size, and cut out the middle",
    )
    data.add_argument("--grey", "--gray", action="store_true", help="make pictures grey, of one channel")
    data.add_argument(
        "--mean",
        type=_numbers,
        default=(0.0,),
        metavar="A,B,C",
        help="subtract from each channel. Before that, pixels of bytes are scaled to 0 ... 1; other arrays are as they "
        "are",
    )
    data.add_argument("--std", type=_numbers, default=(1.0,), metavar="A,B,C", help="then divide each channel by this")
    data.add_argument("--limit", type=_positive, metavar="N", help="measure N samples only, drawn from all with --seed")


def _add_measurement(audit: argparse.ArgumentParser) -> None:
    how = audit.add_argument_group("the measurement")
    how.add_argument(
        "--group", required=True, help='to what: C4, D4, flip:x, T4:x*T4:y, SO2 ...; "invreg groups" lists them'
    )
    how.add_argument(
        "--samples",
        type=_positive,
        metavar="K",
        help="draw K elements for each sample; default: all, or 4 of groups that are infinite or huge",
    )
    how.add_argument("--seed", type=_seed, default=0, help="of all that is drawn; default: 0")
    how.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="default: 64")
    how.add_argument(
        "--outputs",
        choices=("logits", "values"),
        default="logits",
        help="what the model returns; values: no logits, such as embeddings. Default: logits",
    )
    how.add_argument("--saliency", action="store_true", help="compare saliency maps too, on 256 samples; slow")
    how.add_argument("--layers", action="store_true", help="measure each layer too: where is the symmetry lost?")
    how.add_argument(
        "--precision",
        type=_share,
        metavar="P",
        help="stop when the standard error of each error is below this share of it, 0.05 for instance; samples come in "
        "an order drawn with --seed then",
    )
    how.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with pictures that cannot be read and samples at which the model fails; skip: the report "
        "lists them. Default: raise",
    )
    how.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="save the audit there now and then, and go on from there if it is there; for the same data and arguments",
    )


def _add_results(audit: argparse.ArgumentParser) -> None:
    results = audit.add_argument_group("the results")
    results.add_argument("--html", metavar="FILE", help="write a page with figures")
    results.add_argument("--json", metavar="FILE", help="write all numbers, for programs")
    results.add_argument("--markdown", metavar="FILE", help="write tables, for a pull request say")
    results.add_argument(
        "--max-error",
        action="append",
        default=[],
        type=_bound,
        metavar="[NAME=]VALUE",
        help=f"leave with code 1 if an error is larger; NAME is {', '.join(BOUNDED)}; without it, the first. May be "
        "given more than once",
    )
    results.add_argument(
        "--min-consistency",
        type=_consistency,
        metavar="VALUE",
        help="leave with code 1 if a smaller share of predictions, 0 to 1, survives the group",
    )
    results.add_argument("--debug", action="store_true", help="show where an error came from")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", text)
    sizes = (int(found.group(1)), int(found.group(2) or found.group(1))) if found else (0, 0)
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected a height or HEIGHTxWIDTH in pixels: got {text!r}")
    return sizes


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(one) for one in text.split(","))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number: got {text!r}")
    return value


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more: got {text!r}")
    return value


def _positive(text: str) -> int:
    return _whole(text, 1)


def _seed(text: str) -> int:
    return _whole(text, 0)


def _share(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a share above 0, such as 0.05: got {text!r}")
    return value


def _consistency(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1: got {text!r}")
    return value


def _bound(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    name = name or BOUNDED[0]
    if name not in BOUNDED:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(BOUNDED)} before the =: got {name!r}")
    value = _number(number)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a bound of 0 or more: got {text!r}")
    return name, value
