"""Which group does a word name?"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import isfinite
from operator import mul

import torch
import torch.nn.functional as F
from torch import Tensor

from invreg.cli.names import guarded, is_name, named_object
from invreg.groups import (
    CyclicPermutation,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    Flip,
    Group,
    PlanarRotation,
    Scaling,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    Transformations,
    TransformationSet,
    Translation,
    Trivial,
)

_AXES = {"x": -1, "y": -2}


@dataclass(frozen=True)
class _Kind:
    """A form of words.

    Args:
        form: How it is written, with N for a whole number.
        example: One of these words.
        meaning: What the group does.
        pattern: Which words, in lower case, are meant.
        make: Takes the number in the word, or 0, and what follows the colon, or an empty text.
    """

    form: str
    example: str
    meaning: str
    pattern: str
    make: Callable[[int, str], Transformations]


def parse_group(words: str) -> Transformations:
    """The group that is written so.

    Args:
        words: A word as ``list_groups`` explains them, or some with ``*`` between them for their direct product.

    Raises:
        ValueError: There is no such word, its numbers do not suit, or the groups have no direct product.
    """
    parts = [_parse_word(word.strip()) for word in words.split("*")]
    if len(parts) > 1:
        for word, part in zip(words.split("*"), parts, strict=True):
            if not isinstance(part, Group):
                raise ValueError(
                    f"{word.strip()!r} of {words!r} is no group, so that it has no products: audit it alone."
                )
    return reduce(mul, parts)


def list_groups() -> str:
    """What each word means, a line for each."""
    rows = [(kind.form, kind.example, kind.meaning) for kind in _KINDS]
    rows.append(("package.module:name", "my_groups:Shear", "a group of your own, or what makes it when called"))
    rows = [("write", "such as", "for"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{form:{widths[0]}}  {example:{widths[1]}}  {meaning}" for form, example, meaning in rows]
    return "\n".join([*lines, "", *_NOTES])


def _parse_word(word: str) -> Transformations:
    head, _, rest = word.partition(":")
    for kind in _KINDS:
        if found := re.fullmatch(kind.pattern, head.lower()):
            try:
                return kind.make(int(found.group(1)) if found.groups() else 0, rest.strip().lower())
            except (TypeError, ValueError) as error:
                raise ValueError(f"{word!r}, written {kind.form}: {error}") from error
    if is_name(word):
        return _own(word)
    raise ValueError(f"{word!r} is no group. Those that there are: {', '.join(kind.form for kind in _KINDS)}.")


def _own(word: str) -> Transformations:
    made = named_object(word)
    if not isinstance(made, Transformations) and callable(made):
        made = guarded(f"{word}() failed", made)
    if not isinstance(made, Transformations):
        raise ValueError(f"{word!r} must be a Group or a TransformationSet, or return one: got {type(made).__name__}.")
    return made


def _axis(text: str, default: int) -> int:
    """An axis: x, y or its number."""
    if not text:
        return default
    if text in _AXES:
        return _AXES[text]
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"an axis is x, y or its number, such as 1 for channels: got {text!r}.") from None


def _axes(text: str, default: int) -> int | tuple[int, ...]:
    """An axis or several with commas between them."""
    found = tuple(_axis(one.strip(), default) for one in text.split(","))
    return found[0] if len(found) == 1 else found


def _amount(text: str, default: float) -> float:
    return _amounts(text)[0] if text else default


def _amounts(text: str) -> list[float]:
    try:
        found = [float(one) for one in text.split(",")]
    except ValueError:
        raise ValueError(f"expected a number, or some with commas between them: got {text!r}.") from None
    if not all(map(isfinite, found)):
        raise ValueError(f"numbers must be finite: got {text!r}.")
    return found


def _nothing(text: str) -> None:
    if text:
        raise ValueError(f"nothing follows this word: got {text!r}.")


def _alone(group: Callable[[], Transformations]) -> Callable[[int, str], Transformations]:
    """Makes a group from a word that nothing follows."""

    def make(number: int, rest: str) -> Transformations:
        _nothing(rest)
        return group()

    return make


def _of_order(group: Callable[[int], Transformations]) -> Callable[[int, str], Transformations]:
    """Makes a group from a word with a number that nothing follows."""

    def make(number: int, rest: str) -> Transformations:
        _nothing(rest)
        return group(number)

    return make


def _planar_rotation(number: int, rest: str) -> Transformations:
    if rest not in ("", "circle"):
        raise ValueError(f"only circle follows this word: got {rest!r}.")
    return PlanarRotation(circular_mask=rest == "circle")


@dataclass(frozen=True)
class _Change:
    """One change of the values of images, told apart in reports by its name."""

    word: str
    amount: float

    @property
    def __name__(self) -> str:
        return f"{self.word} {self.amount:g}"

    def __call__(self, x: Tensor) -> Tensor:
        return _CHANGES[self.word](x, self.amount)


def _brighter(x: Tensor, amount: float) -> Tensor:
    return x + amount


def _contrasted(x: Tensor, factor: float) -> Tensor:
    middle = x.flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
    return middle + factor * (x - middle)


def _noisy(x: Tensor, deviation: float) -> Tensor:
    return x + deviation * torch.randn_like(x)


def _blurred(x: Tensor, deviation: float) -> Tensor:
    """Smooths the last two axes by a Gaussian bell; beyond its edges an image goes on as it ends."""
    if x.ndim < 3:
        raise ValueError(f"blur smooths images, the last two axes: got inputs of shape {tuple(x.shape)}.")
    if not 0 < deviation <= _WIDEST:
        raise ValueError(f"blur takes a width in pixels, above 0 and up to {_WIDEST}: got {deviation:g}.")
    reach = max(1, round(3 * deviation))
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device, dtype=torch.float64) / deviation) ** 2)
    bell = (bell / bell.sum()).to(x.dtype)
    flat = F.pad(x.reshape(-1, 1, *x.shape[-2:]), [reach] * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, bell.view(1, 1, 1, -1)), bell.view(1, 1, -1, 1))
    return flat.view(x.shape)


_WIDEST = 100
"""How far a blur may reach, as the deviation of the bell in pixels."""

_CHANGES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": _brighter,
    "contrast": _contrasted,
    "noise": _noisy,
    "blur": _blurred,
}


def _changed(word: str) -> Callable[[int, str], Transformations]:
    """Makes a set of changes from the amounts that follow a word."""

    def make(number: int, rest: str) -> Transformations:
        if not rest:
            raise ValueError("amounts must follow, with commas between them.")
        amounts = _amounts(rest)
        if word in ("noise", "blur") and min(amounts) <= 0:
            raise ValueError(f"amounts must be above 0: got {rest!r}.")
        if word == "blur" and max(amounts) > _WIDEST:
            raise ValueError(f"amounts must be at most {_WIDEST} pixels: got {rest!r}.")
        return TransformationSet([_Change(word, one) for one in amounts], realign=[torch.Tensor.clone] * len(amounts))

    return make


_KINDS = (
    _Kind("CN", "C4", "turns of images by multiples of 360°/N", r"c(\d+)", _of_order(CyclicRotation)),
    _Kind("DN", "D4", "the same with mirrors", r"d(\d+)", _of_order(Dihedral)),
    _Kind(
        "TN[:axis]",
        "T4:x",
        "shifts by multiples of 1/N of the axis, with wrap-around",
        r"t(\d+)",
        lambda number, rest: CyclicTranslation(number, _axis(rest, -1)),
    ),
    _Kind("flip[:axis]", "flip:x", "the mirror image along an axis", "flip", lambda _, rest: Flip(_axis(rest, -1))),
    _Kind(
        "PN[:axis]",
        "P3:1",
        "cyclic permutations of the N entries of an axis; 1 is the channels, the default",
        r"p(\d+)",
        lambda number, rest: CyclicPermutation(number, _axis(rest, 1)),
    ),
    _Kind("sign", "sign", "the change of sign of all values", "sign", _alone(SignFlip)),
    _Kind(
        "SO2[:circle]",
        "SO2",
        "turns of images by any angle; circle: only of the largest circle in them",
        "so2",
        _planar_rotation,
    ),
    _Kind(
        "SO3", "SO3", "turns in space of points, whose coordinates are the last axis", "so3", _alone(SpatialRotation)
    ),
    _Kind(
        "shift[:pixels]",
        "shift:2.5",
        "shifts of images by up to so many pixels, 1 if not said, also by fractions",
        "shift",
        lambda _, rest: Translation(_amount(rest, 1.0)),
    ),
    _Kind(
        "scale[:factor]",
        "scale:1.25",
        "enlarging and shrinking of images by up to a factor, 1.25 if not said",
        "scale",
        lambda _, rest: Scaling(_amount(rest, 1.25)),
    ),
    _Kind(
        "SN[:axes]",
        "S10:1",
        "all permutations of the N entries of an axis, 1 if not said; S5:-2,-1 of several together",
        r"s(\d+)",
        lambda number, rest: SymmetricGroup(number, _axes(rest, 1)),
    ),
    _Kind("trivial", "trivial", "nothing: the baseline of a comparison", "trivial", _alone(Trivial)),
    _Kind(
        "brightness:amounts",
        "brightness:0.2,-0.2",
        "amounts added to all values; no group, as those below",
        "brightness",
        _changed("brightness"),
    ),
    _Kind(
        "contrast:factors",
        "contrast:0.5,2",
        "values brought closer to their mean or away from it",
        "contrast",
        _changed("contrast"),
    ),
    _Kind("noise:amounts", "noise:0.1", "Gaussian noise of such deviations added", "noise", _changed("noise")),
    _Kind("blur:pixels", "blur:1,2", "images blurred by Gaussians so wide", "blur", _changed("blur")),
)

_NOTES = (
    "Axes: x is the last axis, y the one before it, 0 the batch, which nothing moves; 1 is the channels of images.",
    "Products: write * between groups whose actions commute, such as 'T3:x*T3:y', in quotes for the shell.",
    "Values are those that the model gets, after --mean and --std.",
    "Infinite groups and SN are measured on elements drawn for each sample: --samples says how many.",
)
