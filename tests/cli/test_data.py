"""Is each kind of file read as it is meant?"""

import gzip
import re
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from invreg.cli.data import Preparation, open_samples

RNG = np.random.default_rng(0)

KEEP = Preparation()


def opened(path, preparation=KEEP, **options):
    return open_samples(str(path), preparation, **options)


def inputs_of(samples):
    return torch.stack(
        [one if samples.labels is None else one[0] for one in map(samples.__getitem__, range(len(samples)))]
    )


def labels_of(samples):
    return None if samples.labels is None else [int(samples[i][1]) for i in range(len(samples))]


def picture(path, height=8, width=8, mode="RGB"):
    """Makes a picture of random pixels; returns these, from 0 to 1, ``(C, H, W)``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (height, width) if mode == "L" else (height, width, len(mode)), np.uint8)
    Image.fromarray(pixels).save(path)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels[:, :, :3]).permute(2, 0, 1).float() / 255


# Pictures


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path):
    wanted = [
        (picture(tmp_path / name), label)
        for name, label in [
            ("ant/b.png", 0),
            ("ant/deep/er/a.png", 0),
            ("bee/2.bmp", 2),
            ("bee/10.PNG", 2),
            ("cat/x.png", 3),
        ]
    ]
    (tmp_path / "aphid-without-any").mkdir()  # a class all the same, between ant and bee
    (tmp_path / "ant" / "notes.txt").write_text("no picture")
    (tmp_path / "ant" / "._b.png").write_bytes(b"what macOS leaves behind")
    picture(tmp_path / ".hidden" / "x.png")
    picture(tmp_path / "ant" / ".ipynb_checkpoints" / "x.png")
    samples = opened(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in samples.files] == [
        "ant/b.png",
        "ant/deep/er/a.png",
        "bee/10.PNG",
        "bee/2.bmp",
        "cat/x.png",
    ]
    assert labels_of(samples) == [0, 0, 2, 2, 3]
    order = [0, 1, 3, 2, 4]
    torch.testing.assert_close(inputs_of(samples), torch.stack([wanted[i][0] for i in order]), rtol=0, atol=0)


def test_pictures_without_sub_folders_have_no_labels(tmp_path):
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    samples = opened(tmp_path)
    assert samples.labels is None
    torch.testing.assert_close(inputs_of(samples), torch.stack([first, second]))


def test_labels_can_be_left_out_or_given(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        picture(tmp_path / name)
    assert labels_of(opened(tmp_path)) == [0, 1, 1]
    assert opened(tmp_path, unlabelled=True).labels is None
    np.save(tmp_path / "labels.npy", np.array([5, 6, 7]))
    assert labels_of(opened(tmp_path, labels=str(tmp_path / "labels.npy"))) == [5, 6, 7]
    np.save(tmp_path / "labels.npy", np.array([5, 6]))
    with pytest.raises(ValueError, match="3 pictures, but there are 2 labels"):
        opened(tmp_path, labels=str(tmp_path / "labels.npy"))


def test_pictures_beside_sub_folders_have_no_class(tmp_path):
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"beside its sub-folders.*stray\.png"):
        opened(tmp_path)
    assert len(opened(tmp_path, unlabelled=True)) == 2


def test_modes_of_pictures(tmp_path):
    grey = picture(tmp_path / "grey" / "a.png", mode="L")
    torch.testing.assert_close(inputs_of(opened(tmp_path / "grey"))[0], grey.expand(3, -1, -1))
    torch.testing.assert_close(inputs_of(opened(tmp_path / "grey", Preparation(grey=True)))[0], grey)
    transparent = picture(tmp_path / "transparent" / "a.png", mode="RGBA")
    torch.testing.assert_close(inputs_of(opened(tmp_path / "transparent"))[0], transparent)


def test_pictures_of_sixteen_bits_are_not_cut_off(tmp_path):
    pixels = RNG.integers(0, 65_536, (8, 8)).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    wanted = torch.from_numpy(pixels.astype(np.float32) / 65_535)
    torch.testing.assert_close(inputs_of(opened(tmp_path, Preparation(grey=True)))[0], wanted[None])
    torch.testing.assert_close(inputs_of(opened(tmp_path))[0], wanted.expand(3, -1, -1))


def test_grey_is_that_of_pillow_for_pictures_and_arrays(tmp_path):
    pixels = picture(tmp_path / "a.png")
    of_picture = inputs_of(opened(tmp_path, Preparation(grey=True)))[0]
    of_array = Preparation(grey=True)(pixels)
    assert of_picture.shape == of_array.shape == (1, 8, 8)
    torch.testing.assert_close(of_array, of_picture, atol=1 / 255, rtol=0)
    assert (pixels.mean(0) - of_picture).abs().max() > 0.05


def test_a_damaged_picture_is_named_when_it_is_read(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "c.png")
    whole = (tmp_path / "c.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    samples = opened(tmp_path)
    assert len(samples) == 3
    with pytest.raises(ValueError, match=r"b\.png cannot be read as a picture"):
        samples[1]
    assert samples[2].shape == (3, 8, 8)


def test_the_first_picture_may_be_the_damaged_one(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    picture(tmp_path / "b.png")
    samples = opened(tmp_path)
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        samples[0]
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match="none of 1 pictures can be read"):
        opened(tmp_path)


def test_pictures_of_several_sizes_need_one(tmp_path):
    picture(tmp_path / "a.png", 8, 8)
    picture(tmp_path / "b.png", 9, 8)
    samples = opened(tmp_path)
    with pytest.raises(ValueError, match=r"b\.png has 9 x 8 pixels, where others have 8 x 8: give --size"):
        samples[1]
    assert inputs_of(opened(tmp_path, Preparation(size=(6, 6)))).shape == (2, 3, 6, 6)


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        opened(tmp_path)


# Arrays


def test_npz_of_floats_is_taken_as_it_is(tmp_path):
    x, y = RNG.normal(size=(4, 2, 5)).astype(np.float32), np.array([2, 0, 1, 1])
    np.savez(tmp_path / "d.npz", x=x, y=y)
    samples = opened(tmp_path / "d.npz")
    torch.testing.assert_close(inputs_of(samples), torch.from_numpy(x), rtol=0, atol=0)
    assert labels_of(samples) == [2, 0, 1, 1]
    assert samples.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("keys", "inputs", "labels"),
    [
        (["images", "labels"], "images", "labels"),
        (["X", "Y"], "X", "Y"),
        (["targets", "inputs"], "inputs", "targets"),
        (["data"], "data", None),
        (["anything"], "anything", None),
        (["data", "x", "y", "extra"], "x", "y"),
    ],
)
def test_keys_are_guessed(tmp_path, keys, inputs, labels):
    arrays = {key: RNG.normal(size=(3, 4)) if key != labels else np.arange(3) + 7 for key in keys}
    np.savez_compressed(tmp_path / "d.npz", **arrays)
    samples = opened(tmp_path / "d.npz")
    torch.testing.assert_close(inputs_of(samples), torch.from_numpy(arrays[inputs]).float())
    assert labels_of(samples) == (None if labels is None else [7, 8, 9])


def test_keys_are_given(tmp_path):
    arrays = {"x": np.zeros((3, 4)), "y": np.arange(3), "test": np.ones((2, 4)), "kinds": np.array([[4], [5]])}
    np.savez(tmp_path / "d.npz", **arrays)
    samples = opened(tmp_path / "d.npz", input_key="test", label_key="kinds")
    assert inputs_of(samples).tolist() == [[1.0] * 4] * 2
    assert labels_of(samples) == [4, 5]
    assert samples.labels.shape == (2,)


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 1, 8, 8), (6, 8, 8, 1), (6, 8, 8, 3), (6, 3, 8, 8), (6, 3, 8, 3)])
def test_bytes_are_pictures(tmp_path, shape):
    x = RNG.integers(0, 256, shape, np.uint8)
    np.savez(tmp_path / "d.npz", images=x)
    found = inputs_of(opened(tmp_path / "d.npz"))
    values = torch.from_numpy(x) / 255
    wanted = {3: values[:, None] if len(shape) == 3 else None, 4: values}[len(shape)]
    if shape in ((6, 8, 8, 1), (6, 8, 8, 3)):
        wanted = values.permute(0, 3, 1, 2)
    torch.testing.assert_close(found, wanted)


def test_npy(tmp_path):
    x = RNG.normal(size=(4, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.array([0.0, 1.0, 1.0, 0.0]))
    assert opened(tmp_path / "x.npy").labels is None
    samples = opened(tmp_path / "x.npy", labels=str(tmp_path / "y.npy"))
    torch.testing.assert_close(inputs_of(samples), torch.from_numpy(x), rtol=0, atol=0)
    assert samples.labels.dtype == torch.float32  # which a single logit takes


def test_inputs_have_the_dtype_of_the_model(tmp_path):
    x = RNG.normal(size=(4, 3))
    np.savez(tmp_path / "d.npz", x=x)
    found = inputs_of(opened(tmp_path / "d.npz", Preparation(dtype=torch.float64)))
    torch.testing.assert_close(found, torch.from_numpy(x), rtol=0, atol=0)
    assert inputs_of(opened(tmp_path / "d.npz")).dtype == torch.float32


@pytest.mark.parametrize(
    ("arrays", "options", "says"),
    [
        ({"a": np.zeros((2, 3)), "b": np.zeros(2)}, {}, "it holds a, b. Give --input-key"),
        ({"x": np.zeros((2, 3))}, {"input_key": "z"}, "under 'z': it holds x"),
        ({"x": np.zeros((2, 3))}, {"label_key": "z"}, "--label-key 'z' is not among them"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3, int)}, {}, "has 2 samples, but there are 3 labels"),
        ({"x": np.zeros((0, 3))}, {}, "a row for each sample"),
        ({"x": np.zeros(3)}, {}, "a row for each sample"),
        ({"x": np.array([["a"]])}, {}, "array of numbers"),
        ({"x": np.array([[None]], object)}, {}, "cannot be read"),
        ({"x": np.zeros((2, 3)), "y": np.array(["a", "b"])}, {}, "labels must be class indices"),
    ],
)
def test_arrays_that_do_not_suit(tmp_path, arrays, options, says):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape(says)):
        opened(tmp_path / "d.npz", **options)


@pytest.mark.parametrize("name", ["d.npz", "d.npy", "d.idx", "d.gz"])
@pytest.mark.parametrize("content", [b"", b"PK no archive", b"\x1f\x8b no gzip", b"\0\0\x08\x03 too short", b"text"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(name)):
        opened(tmp_path / name)


@pytest.mark.parametrize("start", [0, 60, 200, 5000, 60_000])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive(tmp_path, save, start):
    save(tmp_path / "d.npz", x=RNG.normal(size=(100, 100)))
    content = (tmp_path / "d.npz").read_bytes()
    damaged = bytearray(content)
    damaged[start : start + 100] = bytes(100)
    (tmp_path / "d.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"d\.npz (cannot be read|must hold inputs)"):
        opened(tmp_path / "d.npz")


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor a file"):
        opened(tmp_path / "absent")
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    with pytest.raises(ValueError, match="is no file: give --labels"):
        opened(tmp_path / "x.npy", labels=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"arrays of an \.npz file"):
        opened(tmp_path / "x.npy", input_key="x")


# IDX


def idx(values, code=8, kind=">u1"):
    return struct.pack(f">HBB{values.ndim}I", 0, code, values.ndim, *values.shape) + values.astype(kind).tobytes()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
    ],
)
def test_idx_with_its_labels(tmp_path, images, labels, packed):
    x, y = RNG.integers(0, 256, (5, 4, 6), np.uint8), np.array([3, 1, 4, 1, 5], np.uint8)
    (tmp_path / (images + ".gz" * packed)).write_bytes(gzip.compress(idx(x)) if packed else idx(x))
    (tmp_path / labels).write_bytes(idx(y))
    samples = opened(tmp_path / (images + ".gz" * packed))
    torch.testing.assert_close(inputs_of(samples), torch.from_numpy(x)[:, None] / 255)
    assert labels_of(samples) == [3, 1, 4, 1, 5]
    (tmp_path / labels).rename(tmp_path / "elsewhere")
    assert opened(tmp_path / (images + ".gz" * packed)).labels is None
    given = opened(tmp_path / (images + ".gz" * packed), labels=str(tmp_path / "elsewhere"))
    assert labels_of(given) == [3, 1, 4, 1, 5]


def test_packed_labels_beside_unpacked_images(tmp_path):
    (tmp_path / "images-idx3").write_bytes(idx(np.zeros((2, 3, 3))))
    (tmp_path / "labels-idx1.gz").write_bytes(gzip.compress(idx(np.array([1, 2]))))
    assert labels_of(opened(tmp_path / "images-idx3")) == [1, 2]
    assert opened(tmp_path / "images-idx3", unlabelled=True).labels is None


@pytest.mark.parametrize(("code", "kind"), [(0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")])
def test_idx_of_other_types_is_taken_as_it_is(tmp_path, code, kind):
    values = np.array([[-3, 2, 100], [4, 5, 6]])
    (tmp_path / "x").write_bytes(idx(values, code, kind))
    assert inputs_of(opened(tmp_path / "x")).tolist() == values.tolist()


def test_a_truncated_idx_file(tmp_path):
    (tmp_path / "x").write_bytes(idx(np.zeros((2, 3, 3)))[:-1])
    with pytest.raises(ValueError, match=r"34 bytes for the shape \(2, 3, 3\): it holds 33"):
        opened(tmp_path / "x")
    (tmp_path / "x.gz").write_bytes(gzip.compress(idx(np.zeros((2, 3, 3))))[:-9])
    with pytest.raises(ValueError, match="whole gzip file"):
        opened(tmp_path / "x.gz")


# Preparation


def test_mean_and_deviation_per_channel():
    x = torch.rand(3, 4, 4)
    mean, std = (0.1, 0.2, 0.3), (0.5, 2.0, 1.0)
    wanted = torch.stack([(x[c] - mean[c]) / std[c] for c in range(3)])
    torch.testing.assert_close(Preparation(mean=mean, std=std)(x), wanted)
    torch.testing.assert_close(Preparation(mean=(0.5,), std=(0.25,))(x), (x - 0.5) / 0.25)
    for options, says in (({"mean": (1.0, 2.0)}, "--mean"), ({"std": (1.0, 2.0)}, "--std")):
        with pytest.raises(ValueError, match=f"{says} takes one value, or one for each of the 3 channels: got 2"):
            Preparation(**options)(x)


def test_size_cuts_out_the_middle():
    x = torch.rand(1, 8, 12)
    torch.testing.assert_close(Preparation(size=(8, 8))(x), x[:, :, 2:10], rtol=0, atol=0)
    x = torch.rand(1, 12, 8)
    torch.testing.assert_close(Preparation(size=(8, 8))(x), x[:, 2:10], rtol=0, atol=0)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 30), (31, 17), (7, 5)])
@pytest.mark.parametrize("size", [(8, 8), (8, 12), (32, 16)])
def test_size_scales_as_pillow_does(height, width, size):
    """Pillow rounds each of its two passes to whole bytes."""
    smooth = torch.linspace(0, 3, height)[:, None].sin() * torch.linspace(0, 2, width).cos()
    pixels = (smooth.abs() * 255).byte()
    scale = max(size[0] / height, size[1] / width)
    whole = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    resized = Image.fromarray(pixels.numpy()).resize(whole[::-1], Image.Resampling.BILINEAR)
    top, left = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    wanted = np.asarray(resized.crop((left, top, left + size[1], top + size[0]))) / 255
    found = Preparation(size=size)(pixels[None] / 255)
    assert found.shape == (1, *size)
    torch.testing.assert_close(found[0].double(), torch.from_numpy(wanted), atol=1.5 / 255, rtol=0)


@pytest.mark.parametrize("options", [{"size": (4, 4)}, {"grey": True}])
def test_what_is_no_picture_has_no_size_or_colour(options):
    with pytest.raises(ValueError, match=r"for pictures \(C, H, W\): a sample has the shape \(5,\)"):
        Preparation(**options)(torch.rand(5))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        Preparation(grey=True)(torch.rand(4, 8, 8))


# Order


def test_an_order_is_drawn_with_a_seed(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.arange(20.0)[:, None], y=np.arange(20))
    samples = opened(tmp_path / "d.npz")
    some, again, other = (samples.reordered(5, seed) for seed in (1, 1, 2))
    assert len(some) == 5
    assert labels_of(some) == labels_of(again) == some.order.tolist() == inputs_of(some).flatten().tolist()
    assert labels_of(some) != labels_of(other)
    assert len(set(labels_of(some))) == 5
    assert sorted(labels_of(samples.reordered(None, 0))) == list(range(20)) != labels_of(samples.reordered(None, 0))
    assert len(samples.reordered(100, 0)) == 20
    assert labels_of(samples.at([3, 4])) == [3, 4]
    assert list(samples)[3][1] == 3  # which ends: an index beyond the last is an IndexError
