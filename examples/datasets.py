"""The data that the examples train on: MNIST, Fashion-MNIST and scikit-learn's small digits, as tensors.

MNIST and Fashion-MNIST are read from their original IDX files, gzipped or not. These are looked for in the folder
given, in the folder that the environment variable INVREG_DATA names, and in the user's cache; only if they are in none
of them are they downloaded, into the cache.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import tempfile
import urllib.request
import zlib
from http.client import HTTPException
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Name = Literal["mnist", "fashion-mnist"]
Labelled = tuple[Tensor, Tensor]
"""Images and their classes."""

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# Of the unpacked bytes, since every mirror packs differently.
_SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
_MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
}


class Splits(NamedTuple):
    """What to train on, what to pick the best model by, and what to report on; each ``(images, labels)``."""

    train: Labelled
    validation: Labelled
    test: Labelled


def digits(*, classes: int = 9, seed: int = 0) -> Splits:
    """The handwritten digits of 8x8 pixels that ship in scikit-learn: no download.

    Args:
        classes: How many classes to keep. The default leaves out the 9, which is a 6 upside down.
        seed: Of the shuffle before the split.

    Returns:
        1,000 images to train on, 200 to validate and the rest, 417 of nine classes, to test: float32 of shape
        ``(N, 1, 8, 8)`` and labels ``(N,)``, int64. Scaled to zero mean and unit deviation, both over all pixels of the
        training images.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.from_numpy(data.images).float()[:, None], torch.from_numpy(data.target).long()
    images, labels = _first_classes(images, labels, classes)
    order = _shuffled(len(images), seed)
    return _normalized([(images[rows], labels[rows]) for rows in (order[:1000], order[1000:1200], order[1200:])])


def transforming(name: Name, *, folder: Path | None = None, classes: int = 9, seed: int = 0) -> Splits:
    """Transforming-MNIST or Transforming-FMNIST of Moskalev et al. (2023), before the group acts.

    The images are zero-padded from 28x28 to 36x36, so that 36 divides by 3 and by 4. The paper has 10,000 images to
    train on, 2,000 to validate and 50,000 to test, and does not say which: here a shuffle of the original training file
    gives the first two, and the test images are the whole original test file and then the rest of the training file,
    up to 50,000. So no original test image is trained on. About 1,000 images are left over.

    Args:
        name: Which data set.
        folder: Where to look first; see ``load``.
        classes: How many classes to keep. The default leaves out class 9, as the paper does.
        seed: Of the shuffle.

    Returns:
        The splits: float32 of shape ``(N, 1, 36, 36)`` and labels ``(N,)``, int64. Scaled to zero mean and unit
        deviation, both over all pixels of the padded training images.
    """
    images, labels = _first_classes(*load(name, "train", folder), classes)
    test_images, test_labels = _first_classes(*load(name, "test", folder), classes)
    order = _shuffled(len(images), seed)
    rest = order[12_000 : 12_000 + 50_000 - len(test_images)]
    test = torch.cat([test_images, images[rest]]), torch.cat([test_labels, labels[rest]])
    train, validation = ((images[rows], labels[rows]) for rows in (order[:10_000], order[10_000:12_000]))
    return _normalized([(F.pad(x, (4, 4, 4, 4))[:, None].float(), y) for x, y in (train, validation, test)])


def load(name: Name, split: Literal["train", "test"], folder: Path | None = None) -> Labelled:
    """Reads MNIST or Fashion-MNIST.

    Args:
        name: Which data set.
        split: The 60,000 images to train on, or the 10,000 to test.
        folder: Where to look first: for its sub-folder ``mnist`` or ``fashion-mnist``. Then follow the folder in
            INVREG_DATA and the cache, ``$XDG_CACHE_HOME/invreg`` or ``~/.cache/invreg``; then the download.

    Returns:
        Images ``(N, 28, 28)``, uint8, and labels ``(N,)``, int64.

    Raises:
        FileNotFoundError: A file is in none of the folders and cannot be downloaded; the message says what to do.
        ValueError: A file is damaged, or another than it says.
    """
    images, labels = (read_idx(_find(name, file, folder), _SHA256[name][file]) for file in _FILES[split])
    return images, labels.long()


def read_idx(path: Path, sha256: str | None = None) -> Tensor:
    """Reads an IDX file of bytes, gzipped or not.

    Args:
        path: The file.
        sha256: What the unpacked bytes must hash to, if it is known.

    Returns:
        The array, uint8.

    Raises:
        ValueError: The file is truncated or damaged, is no such IDX file, or has another checksum.
    """
    return _parse(path.read_bytes(), str(path), sha256)


def _parse(content: bytes, source: str, sha256: str | None) -> Tensor:
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{source} must be a whole gzip file: {error}. Delete it and get it again.") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(
            f"{source} must be an IDX file of bytes, which begins with 00 00 08: it begins with "
            f"{content[:3].hex(' ') or 'nothing'}. Delete it and get it again."
        )
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4 : min(start, len(content) // 4 * 4)], ">u4").tolist()
    if len(content) != start + prod(shape):
        raise ValueError(
            f"{source} must hold {start + prod(shape):,} bytes for shape {tuple(shape)}: got {len(content):,}. "
            "Delete it and get it again."
        )
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise ValueError(
            f"{source} must have the SHA-256 {sha256} (unpacked): got {found}. It is damaged or another data set's. "
            "Delete it and get it again."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def _find(name: Name, file: str, folder: Path | None) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "invreg"
    folders = [Path(f).expanduser() for f in (folder, os.environ.get("INVREG_DATA"), cache) if f]
    for candidate in folders:
        for path in (candidate / name / file, candidate / name / f"{file}.gz"):
            if path.is_file():
                return path
    return _download(name, file, cache / name / f"{file}.gz", folders)


def _download(name: Name, file: str, target: Path, looked_in: list[Path]) -> Path:
    """Fetches a file, checks it and only then gives it its name, so that none is ever half there."""
    failures = []
    for mirror in _MIRRORS[name]:
        url = f"{mirror}{file}.gz"
        print(f"downloading {url}", file=sys.stderr)
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                content = response.read()
            _parse(content, url, _SHA256[name][file])
        except (OSError, HTTPException, ValueError) as error:
            failures.append(f"{url}: {error}")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
            part = Path(unfinished) / target.name
            part.write_bytes(content)
            return part.replace(target)
    wanted = ", ".join(f"{each}.gz" for files in _FILES.values() for each in files)
    raise FileNotFoundError(
        f"{file} is not in {', '.join(str(f / name) for f in looked_in)} and could not be downloaded:\n  "
        + "\n  ".join(failures)
        + f"\nGet these four files, packed or unpacked: {wanted}"
        + f"\nPut them into a folder DIR/{name}; then give --data DIR or set the environment variable INVREG_DATA=DIR."
    )


def _first_classes(images: Tensor, labels: Tensor, classes: int) -> Labelled:
    kept = labels < classes
    return images[kept], labels[kept]


def _shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _normalized(splits: list[Labelled]) -> Splits:
    """Scales all splits to zero mean and unit deviation of the first one's pixels."""
    deviation, mean = torch.std_mean(splits[0][0])
    return Splits(*(((images - mean) / deviation, labels) for images, labels in splits))
