"""What is in these files?"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

_INPUT_KEYS = ("x", "images", "image", "inputs", "input", "data")
_LABEL_KEYS = ("y", "labels", "label", "targets", "target")

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_LUMA = (0.299, 0.587, 0.114)
"""How much red, green and blue count in grey, as in Pillow (ITU-R 601-2)."""


@dataclass(frozen=True)
class Preparation:
    """What is done to each picture before the model gets it, in this order.

    Args:
        grey: Whether colours are turned into one channel.
        size: Height and width: the picture is scaled until it just covers them, then its middle is cut out. None leaves
            it as it is.
        mean: Subtracted, per channel or the same for all.
        std: Divided by, likewise.
        dtype: What the model takes.
    """

    grey: bool = False
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: torch.dtype = torch.float32

    def __call__(self, x: Tensor) -> Tensor:
        """Prepares one picture ``(C, H, W)``, of values between 0 and 1, or another floating-point input.

        Raises:
            ValueError: The input is no picture, but something is to be done to it that only pictures suit; or the
                channels are not as many as ``mean`` or ``std`` has values.
        """
        if (self.grey or self.size) and x.ndim != 3:
            raise ValueError(f"--grey and --size are for pictures (C, H, W): a sample has the shape {tuple(x.shape)}.")
        if self.grey and len(x) != 1:
            if len(x) != 3:
                raise ValueError(f"--grey takes pictures of 1 or 3 channels: a sample has the shape {tuple(x.shape)}.")
            x = (x * torch.tensor(_LUMA, dtype=x.dtype)[:, None, None]).sum(0, keepdim=True)
        if self.size is not None:
            x = _resized(x, *self.size)
        if self.mean != (0.0,) or self.std != (1.0,):
            x = (x - _per_channel("--mean", self.mean, x)) / _per_channel("--std", self.std, x)
        return x.to(self.dtype)


class Samples(Dataset[Any]):
    """Inputs, with their labels if there are any, in an order of one's choice.

    Args:
        name: What they are, in words.
        read: Makes the input of an index.
        labels: One class index for each; None without labels.
        files: The file of each, where each is one.
        order: The indices in which they are gone through.
        class_names: What the classes are called, where that is known.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[int], Tensor],
        labels: Tensor | None,
        files: Sequence[Path] | None,
        order: Tensor,
        class_names: Mapping[int, str] | None = None,
    ) -> None:
        self.name = name
        self.read = read
        self.labels = labels
        self.files = files
        self.order = order
        self.class_names = dict(class_names or {})

    def __str__(self) -> str:
        return self.name

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> Tensor | tuple[Tensor, Tensor]:
        if not 0 <= position < len(self):
            raise IndexError(f"There are {len(self)} samples: got position {position}.")
        index = int(self.order[position])
        x = self.read(index)
        return x if self.labels is None else (x, self.labels[index])

    def reordered(self, limit: int | None, seed: int) -> Samples:
        """As many of the samples, or all, in an order drawn with a seed, so that the first ones stand for all."""
        drawn = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:limit]
        some = f"{len(drawn)} of {len(self)} of {self.name}, drawn with seed {seed}"
        return Samples(some, self.read, self.labels, self.files, self.order[drawn], self.class_names)

    def at(self, positions: Sequence[int]) -> Samples:
        """Those at some positions of the order."""
        order = self.order[torch.tensor(positions)]
        return Samples(self.name, self.read, self.labels, self.files, order, self.class_names)


def open_samples(
    path: str,
    preparation: Preparation,
    *,
    labels: str | None = None,
    input_key: str | None = None,
    label_key: str | None = None,
    unlabelled: bool = False,
) -> Samples:
    """The samples in a folder of pictures, an .npz or .npy file or an IDX file.

    Args:
        path: The folder or file.
        preparation: What is done to each.
        labels: A file of labels, .npy or IDX; None looks for them beside an IDX file and inside others.
        input_key: Which array of an .npz are the inputs; None guesses.
        label_key: Which are the labels; None guesses.
        unlabelled: Whether to leave labels out.

    Raises:
        ValueError: There is no such file, it is damaged or of another form, or a key or a label is missing.
    """
    place = Path(path)
    if not place.exists():
        raise ValueError(f"{path} is neither a folder nor a file: give --data a folder of pictures, .npz or IDX.")
    if (input_key or label_key) and place.suffix != ".npz":
        raise ValueError(f"--input-key and --label-key name arrays of an .npz file: {path} is none.")
    if place.is_dir():
        return _pictures(place, preparation, labels, unlabelled)
    found: Any = None
    if place.suffix == ".npz":
        inputs, found, key = _from_npz(place, input_key, label_key)
        if label_key and (labels or unlabelled):
            raise ValueError("--label-key, --labels and --no-labels say different things about labels: give one.")
    else:
        inputs, key = _array(place), ""
        beside = None if labels or unlabelled else _labels_beside(place)
        found = None if beside is None else _array(beside)
    if labels:
        found = _array(_file(labels, "--labels"))
    where = f"{key} of {path}" if key else path
    classes = None if unlabelled or found is None else _labels(found, labels or where)
    return _rows(inputs, classes, preparation, where)


def _rows(inputs: Any, labels: Tensor | None, preparation: Preparation, where: str) -> Samples:
    """The rows of an array; pictures of bytes are brought into the form ``(C, H, W)``, from 0 to 1."""
    if inputs.dtype.kind not in "buif":
        raise ValueError(f"{where} must be an array of numbers: got {inputs.dtype}.")
    if inputs.ndim < 2 or not len(inputs):
        raise ValueError(f"{where} must have a row for each sample and some: got an array of shape {inputs.shape}.")
    if labels is not None and len(labels) != len(inputs):
        raise ValueError(f"{where} has {len(inputs)} samples, but there are {len(labels)} labels.")
    in_bytes = inputs.dtype == np.uint8
    channels_last = in_bytes and inputs.ndim == 4 and inputs.shape[-1] in (1, 3, 4) and inputs.shape[1] not in (1, 3, 4)

    def read(index: int) -> Tensor:
        row = inputs[index]
        x = torch.from_numpy(row.astype(np.float64 if row.dtype == np.float64 else np.float32))
        if in_bytes:
            x = x / 255
            x = x[None] if x.ndim == 2 else x.permute(2, 0, 1).contiguous() if channels_last else x
        return preparation(x)

    read(0)  # so that a preparation that does not suit is found at once
    return Samples(where, read, labels, None, torch.arange(len(inputs)))


def _labels(values: Any, where: str) -> Tensor:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 0 or values.dtype.kind not in "buif":
        raise ValueError(
            f"{where}: labels must be class indices, one for each sample: got {values.dtype} {values.shape}."
        )
    return torch.from_numpy(values.astype(np.float32 if values.dtype.kind == "f" else np.int64))


# Arrays


def _from_npz(path: Path, input_key: str | None, label_key: str | None) -> tuple[Any, Any, str]:
    """The inputs, the labels or None, and the key of the inputs."""
    with _opened(path) as arrays:
        inputs, labels = _key(arrays, input_key, _INPUT_KEYS), _key(arrays, label_key, _LABEL_KEYS)
        names = ", ".join(arrays.files) or "nothing"
        if inputs is None and len(arrays.files) == 1 and input_key is None:
            (inputs,) = arrays.files
        if inputs is None:
            which = f"under {', '.join(_INPUT_KEYS)}" if input_key is None else f"under {input_key!r}"
            raise ValueError(f"{path} must hold inputs {which}: it holds {names}. Give --input-key.")
        if labels is None and label_key is not None:
            raise ValueError(f"{path} holds {names}: --label-key {label_key!r} is not among them.")
        try:
            return arrays[inputs], None if labels is None else arrays[labels], inputs
        except Exception as error:  # a damaged file leads numpy to errors of any kind
            raise ValueError(f"{path} cannot be read: {error}") from error


def _key(arrays: Any, given: str | None, guesses: tuple[str, ...]) -> str | None:
    """The name of an array: the one given, or the first that matches a guess."""
    if given is not None:
        return given if given in arrays.files else None
    by_lower = {name.lower(): name for name in reversed(arrays.files)}
    return next((by_lower[guess] for guess in guesses if guess in by_lower), None)


def _opened(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
    except Exception as error:  # likewise
        raise ValueError(f"{path} cannot be read: {error}") from error


def _file(path: str, option: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file: give {option} an .npy or an IDX file.")
    return Path(path)


def _array(path: Path) -> Any:
    """The array in an .npy or an IDX file."""
    return _opened(path) if path.suffix == ".npy" else _read_idx(path)


def _read_idx(path: Path) -> Any:
    """The array in an IDX file, gzipped or not."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} must be a whole gzip file: {error}.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise ValueError(f"{path} is none of the files that can be read: .npz, .npy and IDX, or a folder of pictures.")
    dtype, start = np.dtype(_IDX_TYPES[content[2]]), 4 + 4 * content[3]
    sizes = np.frombuffer(content[4:start], ">u4", count=len(content[4:start]) // 4).tolist()
    if len(content) != start + prod(sizes) * dtype.itemsize:
        raise ValueError(
            f"{path} must hold {start + prod(sizes) * dtype.itemsize:,} bytes for the shape {tuple(sizes)}: it holds "
            f"{len(content):,}. It is damaged."
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(sizes)
    return values.astype(dtype.newbyteorder("="))


def _labels_beside(path: Path) -> Path | None:
    """The file of labels that belongs to an IDX file of images, if it is there."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    plain = name.removesuffix(".gz")
    for candidate in (path.with_name(name), path.with_name(plain), path.with_name(f"{plain}.gz")):
        if candidate.name != path.name and candidate.is_file():
            return candidate
    return None


# Pictures


def _pictures(folder: Path, preparation: Preparation, labels: str | None, unlabelled: bool) -> Samples:
    """The pictures in a folder; the classes are its sub-folders in the order of their names."""
    folders = sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    by_class = {one.name: sorted(_found(one)) for one in folders}
    names = _class_names(by_class)
    beside = sorted(one for one in folder.iterdir() if _is_picture(one))
    paths = [path for pictures in by_class.values() for path in pictures]
    if beside and paths and not unlabelled:
        raise ValueError(
            f"{folder} holds pictures beside its sub-folders, which name the classes: {beside[0].name}, for one. Move "
            "them, or give --no-labels."
        )
    classes = None
    if paths and not unlabelled:
        classes = torch.tensor([label for label, name in names.items() for _ in by_class[name]])
    paths += beside
    if not paths:
        raise ValueError(f"{folder} holds no pictures ({', '.join(one[1:] for one in _SUFFIXES)}).")
    if labels and not unlabelled:
        names = {}
        classes = _labels(_array(_file(labels, "--labels")), labels)
        if len(classes) != len(paths):
            raise ValueError(f"{folder} has {len(paths)} pictures, but there are {len(classes)} labels in {labels}.")
    picture_shape = _first_shape(paths, preparation)

    def read(index: int) -> Tensor:
        x = _read(paths[index], preparation)
        if x.shape != picture_shape:
            raise ValueError(
                f"{paths[index]} has {_in_words(x)}, where others have {picture_shape[1]} x {picture_shape[2]}: give "
                "--size, to bring all to one."
            )
        return x

    return Samples(str(folder), read, classes, paths, torch.arange(len(paths)), {} if classes is None else names)


def _class_names(folders: Iterable[str]) -> dict[int, str]:
    """The class of each folder: its name where all are whole numbers, and otherwise its place in their order."""
    names = list(folders)
    if all(name.isdecimal() for name in names) and len({int(name) for name in names}) == len(names):
        return {int(name): name for name in names}
    return dict(enumerate(names))


def _found(folder: Path) -> Iterator[Path]:
    """The pictures in a folder and the folders in it."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (path for path in (Path(place, name) for name in files) if _is_picture(path))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _first_shape(paths: list[Path], preparation: Preparation) -> torch.Size:
    """The shape of the first picture that can be read."""
    failure: Exception | None = None
    for path in paths:
        try:
            return _read(path, preparation).shape
        except _UnreadableError as error:
            failure = failure or error
    raise ValueError(f"none of {len(paths)} pictures can be read; the first: {failure}") from failure


class _UnreadableError(ValueError):
    """A file that is no whole picture."""


def _read(path: Path, preparation: Preparation) -> Tensor:
    """One picture, prepared."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ValueError("to read pictures, Pillow is needed: pip install pillow.") from error
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)  # as a camera that was held upright
            if picture.mode.startswith("I"):  # of 16 bits, which a conversion would cut off
                values = np.asarray(picture).astype(np.float32) / 65_535
                values = values if preparation.grey else np.stack([values] * 3)
            else:
                values = np.asarray(picture.convert("L" if preparation.grey else "RGB")).astype(np.float32) / 255
                values = values if preparation.grey else values.transpose(2, 0, 1)
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise _UnreadableError(f"{path} cannot be read as a picture: {error}") from error
    return preparation(torch.from_numpy(np.ascontiguousarray(values[None] if values.ndim == 2 else values)))


# Preparation


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    """Scales a picture until it just covers a size, smoothed where it shrinks, and cuts out its middle."""
    scale = max(height / x.shape[1], width / x.shape[2])
    sizes = max(height, round(x.shape[1] * scale)), max(width, round(x.shape[2] * scale))
    if sizes != tuple(x.shape[1:]):
        x = F.interpolate(x[None], size=sizes, mode="bilinear", antialias=True)[0]
    top, left = (sizes[0] - height) // 2, (sizes[1] - width) // 2
    return x[:, top : top + height, left : left + width].contiguous()


def _per_channel(option: str, values: tuple[float, ...], x: Tensor) -> Tensor:
    if len(values) not in (1, x.shape[0]):
        raise ValueError(f"{option} takes one value, or one for each of the {x.shape[0]} channels: got {len(values)}.")
    return torch.tensor(values, dtype=x.dtype).view(-1, *[1] * (x.ndim - 1))


def _in_words(x: Tensor) -> str:
    return f"{x.shape[1]} x {x.shape[2]} pixels"
