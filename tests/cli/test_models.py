"""Does each word name the model that it is documented to name, with its weights?"""

import re
import sys
import textwrap
from types import ModuleType

import pytest
import torch
from torch import nn

from invreg.cli.models import load_model
from tests.cli import nets

X = torch.rand(5, 1, 8, 8)


def loaded(word, weights=None):
    return load_model(word, weights=None if weights is None else str(weights), device=None)


@pytest.fixture
def trained(tmp_path):
    """The weights of a model that differ from those of a new one, and where they are saved."""
    model = nets.Plain()
    nn.init.normal_(model.head.weight)
    return model, tmp_path / "weights.pt"


@pytest.mark.parametrize("name", ["plain", "Plain", "instance", "Bag.inner"])
def test_a_name_is_a_module_or_makes_one(name):
    torch.testing.assert_close(loaded(f"tests.cli.nets:{name}")(X), nets.Plain()(X))


def test_an_instance_is_taken_as_it_is():
    assert loaded("tests.cli.nets:instance") is nets.instance
    assert loaded("tests.cli.nets:Bag.inner") is nets.Bag.inner


def test_any_callable_is_a_model():
    torch.testing.assert_close(loaded("tests.cli.nets:function")(X), nets.Averaging()(X))


def test_a_module_is_moved():
    model = load_model("tests.cli.nets:Plain", weights=None, device="meta")
    assert model.head.weight.device.type == "meta"


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "step": torch.tensor(3)},
        lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {"state_dict": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
        lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}},
    ],
    ids=["bare", "state_dict", "model", "model_state_dict", "both", "module.", "compiled", "other way", "model."],
)
def test_weights_are_found_in_checkpoints(trained, wrapped):
    model, file = trained
    torch.save(wrapped(model.state_dict()), file)
    torch.testing.assert_close(loaded("tests.cli.nets:zeros", file)(X), model(X), rtol=0, atol=0)


def test_safetensors(trained):
    numpy_of = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    model, file = trained
    file = file.with_suffix(".safetensors")
    numpy_of.save_file(model.state_dict(), file)
    torch.testing.assert_close(loaded("tests.cli.nets:zeros", file)(X), model(X), rtol=0, atol=0)


def test_safetensors_are_read_by_their_library(trained, monkeypatch):
    """With a stand-in for the library, which need not be installed."""
    model, file = trained
    file = file.with_suffix(".safetensors")
    file.write_bytes(b"")
    library = ModuleType("safetensors.torch")
    library.load_file = {str(file): model.state_dict()}.__getitem__
    monkeypatch.setitem(sys.modules, "safetensors", ModuleType("safetensors"))
    monkeypatch.setitem(sys.modules, "safetensors.torch", library)
    torch.testing.assert_close(loaded("tests.cli.nets:zeros", file)(X), model(X), rtol=0, atol=0)


def test_safetensors_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="pip install safetensors"):
        loaded("tests.cli.nets:plain", tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        ({"head.weight": torch.zeros(3, 64)}, "does not fit the model: it lacks head.bias"),
        (
            {"head.weight": torch.zeros(3, 64), "head.bias": torch.zeros(3), "tail": torch.zeros(1)},
            "the model has no tail",
        ),
        (
            {"head.weight": torch.zeros(4, 64), "head.bias": torch.zeros(3)},
            "of other shapes are head.weight (4, 64), not (3, 64)",
        ),
        ({str(name): torch.zeros(1) for name in range(9)}, "the model has no 0, 1, 2 and 6 more"),
        ({"epoch": 3}, "holds no weights"),
        ({1: torch.zeros(2)}, "holds no weights"),
        (torch.zeros(2), "must hold a dictionary of weights: got Tensor"),
        (nets.Plain, "more than weights"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, saved, says):
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=re.escape(says)):
        loaded("tests.cli.nets:plain", tmp_path / "w.pt")


def test_a_file_that_holds_no_weights(tmp_path):
    (tmp_path / "w.pt").write_text("no weights")
    with pytest.raises(ValueError, match=r"w\.pt"):
        loaded("tests.cli.nets:plain", tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("word", "weights", "says"),
    [
        ("tests.cli.nets:absent", None, "no attribute 'absent'"),
        ("tests.cli.nets:Bag.absent", None, "no attribute 'absent'"),
        ("tests.cli.absent:plain", None, "cannot be imported: ModuleNotFoundError"),
        ("tests.cli.nets", None, "neither package.module:name nor a file"),
        ("absent.pt2", None, "neither package.module:name nor a file"),
        ("tests.cli.nets:number", None, "must be a model, or make one when called: got int"),
        ("tests.cli.nets:nothing", None, "must return a model: got NoneType"),
        ("tests.cli.nets:needs", None, "made without arguments: TypeError"),
        ("tests.cli.nets:fails", None, "RuntimeError: no such luck"),
        ("tests.cli.nets:leaves", None, "SystemExit: 3"),
        ("tests.cli.nets:plain", "absent.pt", "is no file: give --weights"),
        ("tests.cli.nets:function", __file__, "loaded into an nn.Module"),
        (__file__, None, "cannot be read as an exported program"),
    ],
)
def test_other_words_are_refused(word, weights, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        loaded(word, weights)


def test_a_script_that_leaves_when_imported(tmp_path, monkeypatch):
    (tmp_path / "leaving_script.py").write_text("import sys\nsys.exit('usage')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="cannot be imported: SystemExit: usage"):
        loaded("leaving_script:model")


# Exported programs


def exported(path, rows=None, batch=4, model=None):
    """Exports a model, for batches of one size or of some sizes."""
    shapes = None if rows is None else ({0: rows},)
    x = torch.rand(batch, 1, 8, 8)
    torch.export.save(torch.export.export(model or nets.Plain().eval(), (x,), dynamic_shapes=shapes), path)
    return str(path)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    return {
        "static": exported(folder / "static.pt2"),
        "one": exported(folder / "one.pt2", batch=1),
        "dynamic": exported(folder / "dynamic.pt2", torch.export.Dim.DYNAMIC),
        "limited": exported(folder / "limited.pt2", torch.export.Dim("rows", min=3, max=6)),
    }


@pytest.mark.parametrize("kind", ["static", "one", "dynamic", "limited"])
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 9])
def test_programs_take_any_batch(programs, kind, rows):
    model = load_model(programs[kind], weights=None, device=None)
    x = torch.rand(rows, 1, 8, 8)
    torch.testing.assert_close(model(x), nets.Plain()(x))
    assert model.__name__ == f"{kind}.pt2"


def test_the_program_itself_takes_one_batch_only(programs):
    """Else the last test would show nothing."""
    with pytest.raises(Exception, match=r"Guard|shape|size"):
        torch.export.load(programs["static"]).module()(torch.rand(5, 1, 8, 8))


def test_gradients_flow_through_a_program(programs):
    model = load_model(programs["static"], weights=None, device=None)
    x = torch.rand(5, 1, 8, 8, requires_grad=True)
    model(x).sum().backward()
    torch.testing.assert_close(x.grad.flatten(1), nets.Plain().head.weight.sum(0).expand(5, -1))


def test_programs_have_their_weights(programs):
    with pytest.raises(ValueError, match="leave --weights out"):
        load_model(programs["static"], weights="w.pt", device=None)


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


def test_programs_of_two_inputs_are_refused(tmp_path):
    x = torch.rand(2, 3)
    torch.export.save(torch.export.export(Two(), (x, x)), tmp_path / "two.pt2")
    with pytest.raises(ValueError, match="it takes 2"):
        loaded(str(tmp_path / "two.pt2"))


def test_a_module_beside_is_imported(tmp_path, monkeypatch):
    code = "from tests.cli import nets\n\nclass Holder:\n    class Deep:\n        model = nets.Averaging()\n"
    (tmp_path / "model_beside.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    torch.testing.assert_close(loaded("model_beside:Holder.Deep.model")(X), nets.Averaging()(X))
