"""The data that the examples train on: what is read, where it is looked for, what happens to damaged files."""

import gzip
import hashlib
import importlib.util
import io
import struct
from collections import defaultdict
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data"
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    """The module, with an empty cache and no network: what reaches for it raises."""
    spec = importlib.util.spec_from_file_location("examples_datasets", ROOT / "examples" / "datasets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("INVREG_DATA", raising=False)

    def unreachable(url, timeout):
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    return module


@pytest.fixture
def unchecked(datasets, monkeypatch):
    """The same, taking files whatever their checksum."""
    monkeypatch.setattr(datasets, "_SHA256", defaultdict(lambda: defaultdict(lambda: None)))
    return datasets


def idx(array: torch.Tensor) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.numpy().tobytes()


def images_and_labels(value: int = 0) -> dict[str, bytes]:
    """Two images of 28x28 whose first pixel is ``value``, and their labels."""
    images = torch.arange(2 * 28 * 28, dtype=torch.int64).remainder(251).to(torch.uint8).view(2, 28, 28)
    images[0, 0, 0] = value
    labels = torch.tensor([7, 3], dtype=torch.uint8)
    return {file: idx(images if "images" in file else labels) for file in FILES}


def put(folder: Path, files: dict[str, bytes], *, packed: bool = False) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)


class TestReadIdx:
    array = torch.arange(24, dtype=torch.uint8).view(2, 3, 4)

    @pytest.mark.parametrize("packed", [False, True])
    def test_reads_the_array(self, datasets, tmp_path, packed):
        content = idx(self.array)
        (tmp_path / "a").write_bytes(gzip.compress(content) if packed else content)
        read = datasets.read_idx(tmp_path / "a", hashlib.sha256(content).hexdigest())
        assert read.dtype == torch.uint8
        assert torch.equal(read, self.array)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            pytest.param(b"", "begins with nothing", id="empty"),
            pytest.param(b"\x89PNG" + bytes(20), "begins with 89 50 4e", id="picture"),
            pytest.param(b"\0\0\x0d\x01" + bytes(8), "begins with 00 00 0d", id="floats"),
            pytest.param(idx(array)[:9], "must hold", id="within the header"),
            pytest.param(idx(array)[:-1], r"must hold 40 bytes for shape \(2, 3, 4\): got 39", id="one byte short"),
            pytest.param(idx(array) + b"\0", "got 41", id="one byte long"),
            pytest.param(gzip.compress(idx(array))[:-9], "whole gzip file", id="truncated gzip"),
            pytest.param(gzip.compress(idx(array))[:12] + bytes(30), "whole gzip file", id="damaged gzip"),
        ],
    )
    def test_names_the_damaged_file(self, datasets, tmp_path, content, message):
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(ValueError, match=message) as raised:
            datasets.read_idx(tmp_path / "damaged")
        assert str(tmp_path / "damaged") in str(raised.value)

    def test_names_the_file_with_another_checksum(self, datasets, tmp_path):
        (tmp_path / "other").write_bytes(idx(self.array))
        with pytest.raises(ValueError, match=r"other must have the SHA-256 0000.* \(unpacked\): got"):
            datasets.read_idx(tmp_path / "other", "0" * 64)


class TestLoad:
    @pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
    @pytest.mark.parametrize("split", ["train", "test"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_reads_images_and_labels(self, unchecked, tmp_path, name, split, packed):
        put(tmp_path / name, images_and_labels(5), packed=packed)
        images, labels = unchecked.load(name, split, tmp_path)
        assert (images.shape, images.dtype) == ((2, 28, 28), torch.uint8)
        assert images[0, 0, :3].tolist() == [5, 1, 2]
        assert labels.dtype == torch.int64
        assert labels.tolist() == [7, 3]

    def test_looks_in_the_folder_then_the_variable_then_the_cache(self, unchecked, monkeypatch, tmp_path):
        monkeypatch.setenv("INVREG_DATA", str(tmp_path / "variable"))
        order = [tmp_path / "given", tmp_path / "variable", tmp_path / "cache" / "invreg"]
        for value, folder in reversed(list(enumerate(order))):
            put(folder / "mnist", images_and_labels(value))
            images, _ = unchecked.load("mnist", "train", tmp_path / "given")
            assert images[0, 0, 0] == value, f"{folder} comes before those after it"

    def test_refuses_a_file_of_another_data_set(self, datasets, tmp_path):
        put(tmp_path / "mnist", images_and_labels())
        with pytest.raises(ValueError, match=r"mnist.train-images-idx3-ubyte must have the SHA-256 ba891046"):
            datasets.load("mnist", "train", tmp_path)

    def test_says_without_network_which_files_go_where(self, datasets, tmp_path):
        with pytest.raises(FileNotFoundError) as raised:
            datasets.load("fashion-mnist", "test", tmp_path / "given")
        message = str(raised.value)
        wanted = [f"{file}.gz" for file in FILES]
        places = [str(tmp_path / "given" / "fashion-mnist"), str(tmp_path / "cache" / "invreg" / "fashion-mnist")]
        for part in (*wanted, *places, "no network in tests", "DIR/fashion-mnist", "--data DIR", "INVREG_DATA=DIR"):
            assert part in message
        assert not (tmp_path / "cache").exists()

    def test_downloads_into_the_cache_once(self, datasets, monkeypatch, tmp_path):
        files = images_and_labels(9)
        sums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        monkeypatch.setattr(datasets, "_SHA256", {"mnist": sums})
        asked = []

        def mirror(url, timeout):
            asked.append(url)
            damaged = len(asked) == 1
            return io.BytesIO(
                gzip.compress(files[url.rsplit("/", 1)[1].removesuffix(".gz")])[: 20 if damaged else None]
            )

        monkeypatch.setattr("urllib.request.urlopen", mirror)
        for _ in range(2):
            images, labels = datasets.load("mnist", "train")
            assert images[0, 0, 0] == 9
            assert labels.tolist() == [7, 3]
        first, second = datasets._MIRRORS["mnist"]
        images_file, labels_file = (f"{file}.gz" for file in FILES[:2])
        assert asked == [first + images_file, second + images_file, first + labels_file], "a damaged answer is no file"
        cached = {path.name for path in (tmp_path / "cache" / "invreg" / "mnist").iterdir()}
        assert cached == {images_file, labels_file}, "nothing unfinished is left behind"


class TestSplits:
    @pytest.mark.parametrize(("classes", "total"), [(9, 1617), (10, 1797)])
    def test_digits(self, datasets, classes, total):
        splits = datasets.digits(classes=classes)
        assert [len(images) for images, _ in splits] == [1000, 200, total - 1200]
        for images, labels in splits:
            assert (images.shape[1:], images.dtype, labels.dtype) == ((1, 8, 8), torch.float32, torch.int64)
            assert labels.unique().tolist() == list(range(classes))
        assert splits.train[0].mean().abs() < 1e-5
        assert abs(splits.train[0].std() - 1) < 1e-5

    def test_digits_depend_on_the_seed_alone(self, datasets):
        (first, _), (again, _), (other, _) = (datasets.digits(seed=seed).train for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_transforming_keeps_the_splits_apart(self, datasets, monkeypatch):
        sizes, first_of_test = {"train": 60_000, "test": 10_000}, 60_000

        def numbered(name, split, folder):
            """Images of 4x4 pixels that hold their own number, in base 256."""
            number = torch.arange(sizes[split]) + (first_of_test if split == "test" else 0)
            digits = torch.stack([number % 256, number // 256 % 256, number // 256**2], 1)
            return torch.nn.functional.pad(digits, (0, 13)).view(-1, 4, 4).to(torch.uint8), number % 10

        monkeypatch.setattr(datasets, "load", numbered)
        splits = datasets.transforming("mnist")
        assert [tuple(images.shape) for images, _ in splits] == [(n, 1, 12, 12) for n in (10_000, 2_000, 50_000)]
        deviation, mean = torch.std_mean(splits.train[0].double())
        assert abs(mean) < 1e-5
        assert abs(deviation - 1) < 1e-5
        unit = (splits.train[0].max() - splits.train[0].min()) / 255  # the largest of 10,000 last digits is 255
        numbers = []
        for images, labels in splits:
            pixels = ((images - splits.train[0].min()) / unit).round().long()
            assert not torch.cat([pixels[..., :4, :], pixels[..., -4:, :]]).any(), "the border is zero before scaling"
            number = (pixels[:, 0, 4, 4:8] * torch.tensor([1, 256, 256**2, 0])).sum(1)
            assert torch.equal(number % 10, labels)
            assert labels.unique().tolist() == list(range(9))
            numbers.append(number)
        assert len(torch.cat(numbers).unique()) == 62_000, "no image is in two splits"
        assert (numbers[0] < first_of_test).all()
        assert (numbers[1] < first_of_test).all()
        assert (numbers[2] >= first_of_test).sum() == 9_000, "all original test images are tested on"

    @pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
    def test_real_data(self, datasets, name):
        if not (REAL / name).is_dir():
            pytest.skip(f"no real data at {REAL / name}")
        assert datasets.load(name, "test", REAL)[0].shape == (10_000, 28, 28)
        splits = datasets.transforming(name, folder=REAL)
        assert [tuple(images.shape) for images, _ in splits] == [(n, 1, 36, 36) for n in (10_000, 2_000, 50_000)]
        for images, labels in splits:
            assert images.dtype == torch.float32
            assert labels.bincount().numel() == 9
            assert (images[..., :4, :] == images.min()).all()
        assert splits.train[0].mean().abs() < 1e-4
        assert abs(splits.train[0].std() - 1) < 1e-4
