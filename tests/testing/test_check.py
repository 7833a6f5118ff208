"""Does check_group say what is wrong, and leave everything else alone?"""

import ast
import pickle
import re
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from invreg import (
    CyclicRotation,
    Dihedral,
    FiniteGroup,
    Flip,
    OnKeys,
    PlanarRotation,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
)
from invreg.testing import LAWS, LawError, check_group, parametrize_with_laws
from tests.testing.test_laws_bite import (
    POINTS,
    SHIFTED,
    SQUARES,
    Detached,
    Gain,
    InverseIsItself,
    Reversed,
    Shift,
    Turn,
)

ROOT = Path(__file__).parents[2]


def error_of(group, example_input, **settings):
    with pytest.raises(LawError) as caught:
        check_group(group, example_input, max_examples=12, **settings)
    return caught.value


# ------------------------------------------------------------------------------------------------- what is said


def test_message_names_law_elements_input_and_mistake():
    error = error_of(Reversed(), SQUARES)
    assert str(error) == (
        'Reversed() breaks the law "compatibility", acting in turn is acting by the product: g·(h·x) = (gh)·x. '
        "With g = 1, h = 4 and x = tensor([[[[1., 0.], [0., 0.]]]]): "
        "g·(h·x) and (gh)·x differ by up to 1 at position (0, 0, 0, 0). "
        "Likely mistake: composition looks reversed: g·(h·x) = (hg)·x holds on this input. Swap the factors in "
        "compose, or let act undo what it does now."
    )
    assert error.law == "compatibility"
    assert {name: int(g) for name, g in error.elements.items()} == {"g": 1, "h": 4}
    assert error.inputs.tolist() == [[[[1, 0], [0, 0]]]]


def test_elements_and_input_of_the_error_break_the_law_again():
    error = error_of(Reversed(), SQUARES)
    with pytest.raises(AssertionError, match=r"g·\(h·x\) and \(gh\)·x differ"):
        LAWS[error.law](Reversed(), **error.elements, x=error.inputs)


def test_inverse_that_looks_like_the_element_itself():
    error = error_of(InverseIsItself(), SHIFTED)
    assert "Likely mistake: inverse looks like the element itself" in str(error)
    assert error.inputs is None
    assert error.elements.keys() == {"g"}


def test_large_inputs_are_described():
    error = error_of(Reversed(), torch.zeros(1, 1, 28, 28))
    assert "x = zeros of shape (1, 1, 28, 28), torch.float32, but for 1 at (0, 0, 0, 0): " in str(error)
    assert error.inputs.shape == (1, 1, 28, 28)


def test_inputs_that_interpolate_are_left_to_the_attribute():
    class Backwards(PlanarRotation):
        def compose(self, g, h):
            return super().compose(g, self.inverse(h))

        def inverse(self, g):
            return super().inverse(g)

    error = error_of(Backwards(), torch.zeros(1, 1, 28, 28))
    assert error.law in ("identity", "associativity")
    assert "x = a batch of shape (1, 1, 28, 28), torch.float32 (the attribute inputs of this error)" in str(error)


def test_what_the_group_raises_is_chained():
    class Failing(Shift):
        def compose(self, g, h):
            raise RuntimeError("out of luck")

    error = error_of(Failing(), SHIFTED)
    assert error.law == "determinism"
    assert "RuntimeError: out of luck" in str(error)
    assert isinstance(error.__cause__, RuntimeError)
    assert error_of(Detached(), SHIFTED).__cause__ is None


def test_an_assertion_of_the_group_itself_is_chained():
    class Doubting(Shift):
        def inverse(self, g):
            assert (g < 2).all()
            return super().inverse(g)

    error = error_of(Doubting(), SHIFTED)
    assert type(error.__cause__) is AssertionError
    assert error.__cause__.__traceback__ is not None


def test_a_group_that_counts_its_calls_is_told():
    class Counting(Shift):
        calls = 0

        def transform(self, index, x):
            Counting.calls += 1
            return x.roll(index, -1) if Counting.calls % 50 else x + 1

    error = error_of(Counting(), SHIFTED)
    assert "broken in one call and kept in the next" in str(error)


def test_error_can_be_pickled():
    error = error_of(Reversed(), SQUARES)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.law) == (str(error), error.law)
    assert torch.equal(copy.inputs, error.inputs)


def test_dtype_and_shape_are_those_of_the_example():
    seen = set()

    class Watching(Shift):
        def compose(self, g, h):
            return (g - h) % 3 if g.ndim == 0 else (g + h) % 3

        def act(self, g, x):
            seen.add((tuple(x.shape[1:]), x.dtype))
            return super().act(g, x)

    error_of(Watching(), torch.zeros(2, 5, 3, dtype=torch.float16))
    assert {shape for shape, _ in seen} == {(5, 3)}
    assert error_of(Detached(), torch.zeros(2, 5, 3, dtype=torch.float16)).inputs.dtype == torch.float16


def test_tolerance_bounds_the_error_of_an_action_that_interpolates():
    images = torch.zeros(1, 1, 28, 28)
    check_group(PlanarRotation(), images, max_examples=10)
    error = error_of(PlanarRotation(), images, tolerance=0.001)
    assert error.law in ("compatibility", "action_inverse")
    assert "of the norm, where 0.001 is allowed. If interpolation explains it, pass a larger tolerance" in str(error)


@pytest.mark.parametrize(
    "group",
    [CyclicRotation(4), Flip(2), SymmetricGroup(3), PlanarRotation(), SpatialRotation()],
    ids=repr,
)
def test_an_example_input_is_found(group):
    check_group(group, max_examples=5, tolerance=0.15)


def test_inputs_of_several_tensors():
    group = OnKeys({"image": Dihedral(4), "mask": Dihedral(4)})
    check_group(group, {"image": torch.zeros(1, 2, 3, 3), "mask": torch.zeros(1, 3, 3)}, max_examples=10)

    error = error_of(OnKeys({0: Reversed(), 1: Reversed()}), (torch.zeros(1, 2, 2), torch.zeros(1, 1)[:, :, None]))
    assert error.law == "compatibility"
    assert [x.shape for x in error.inputs] == [(1, 2, 2), (1, 1, 1)]
    assert "x = (tensor([[[1., 0.], [0., 0.]]]), tensor([[[0.]]])): " in str(error)


def test_masks_of_whole_numbers_are_checked_and_other_entries_left_alone():
    group = OnKeys({"image": Flip(), "mask": Flip()})
    batch = {"image": torch.tensor([[1.0, 2.0]]), "mask": torch.tensor([[0, 1]]), "id": torch.tensor([7])}
    check_group(group, batch, max_examples=5)

    class Doubling(Flip):
        def transform(self, index, x):
            return 2 * x.flip(-1) if index else x

        def transform_each(self, g, x):
            return torch.where(g.view(-1, 1) == 1, 2 * x.flip(-1), x)

    error = error_of(OnKeys({"image": Flip(), "mask": Doubling()}), batch)
    assert "'mask': tensor([[" in str(error)
    assert error.inputs["id"].tolist() == [7] * len(error.inputs["id"])
    assert "at 'mask', position (" in str(error)

    class Renaming(OnKeys):
        def act(self, g, x):
            return {**super().act(g, x), "id": x["id"] + 1}

        @property
        def order(self):
            return 2

    with pytest.raises(LawError, match="should leave the entry 'id' as it is"):
        check_group(Renaming({"image": SpatialRotation()}), {"image": torch.zeros(1, 2, 3), "id": torch.tensor([7])})


def test_nearest_neighbours_pass_on_the_input_that_is_chosen():
    check_group(PlanarRotation("nearest"), max_examples=5)


def test_interpolation_is_named_as_a_reason_with_a_number_above_the_limit():
    error = error_of(PlanarRotation("nearest"), torch.zeros(1, 1, 28, 28))
    assert "If interpolation explains it, pass a larger tolerance or a larger, smoother example_input." in str(error)
    found, limit = re.search(r"([\d.e-]+) of the norm, where ([\d.e-]+) is allowed", str(error)).groups()
    assert float(found) > float(limit) == 0.1


def test_groups_are_checked_in_inference_mode_too():
    with torch.inference_mode():
        check_group(Flip(), torch.zeros(1, 3), max_examples=3)
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        check_group(Flip(), max_examples=3)


def test_running_out_of_memory_is_no_broken_law():
    class Hungry(Shift):
        def transform(self, index, x):
            return x.new_empty(10**15).view(x.shape) if index == 2 else super().transform(index, x)

    with pytest.raises(RuntimeError, match="memory"):
        check_group(Hungry(), SHIFTED, max_examples=20)


# --------------------------------------------------------------------------------------- what is left alone


def test_nothing_is_printed_and_random_numbers_are_left_alone(capfd):
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002  # the global state is what this is about
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with warnings.catch_warnings(record=True) as caught:
        check_group(Shift(), SHIFTED, max_examples=10)
        error_of(Reversed(), SQUARES)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numbers  # noqa: NPY002
    assert capfd.readouterr() == ("", "")
    assert caught == []


def test_the_same_in_every_run():
    assert str(error_of(Detached(), SHIFTED)) == str(error_of(Detached(), SHIFTED))


def test_the_example_input_is_not_written_to():
    x = torch.zeros(1, 3)
    check_group(Shift(), x, max_examples=2)
    assert x._version == 0


# ------------------------------------------------------------------------------------------------ what is refused


class WithoutExact(FiniteGroup):
    order = 2
    compose = inverse = None


class WithoutOrder(FiniteGroup):
    exact = True
    compose = inverse = None


REFUSED = {
    "a class": (lambda: check_group(Flip), TypeError, r"checks a Group, e\.g\. .*: got the class Flip: write Flip\("),
    "no group": (lambda: check_group(3), TypeError, r"checks a Group.*got 3"),
    "no tensor": (
        lambda: check_group(Flip(), "x"),
        TypeError,
        r"needs floating-point tensors as example_input: got str",
    ),
    "whole numbers": (
        lambda: check_group(Flip(), torch.zeros(1, 3, dtype=torch.int64)),
        TypeError,
        r"needs floating-point tensors as example_input: got one of torch\.int64\. Use x\.float\(\)",
    ),
    "two dtypes": (
        lambda: check_group(OnKeys({0: Flip()}), (torch.zeros(1, 3), torch.zeros(1, 3).double())),
        TypeError,
        r"tensors of one dtype and device as example_input: got torch\.float32 on cpu and torch\.float64 on cpu",
    ),
    "an empty batch": (lambda: check_group(Flip(), torch.zeros(0, 3)), ValueError, r"at least one sample.*\(0, 3\)"),
    "no batch": (lambda: check_group(Flip(), torch.tensor(1.0)), ValueError, r"shape \(N, \.\.\.\): got shape \(\)"),
    "not square": (
        lambda: check_group(CyclicRotation(4), torch.zeros(2, 1, 3, 4)),
        ValueError,
        r"^check_group needs an input that the group acts on: CyclicRotation\(order=4\) refuses torch\.float32 of "
        r"shape \(2, 1, 3, 4\)\. CyclicRotation\(order=4\) turns square images: got images of shape \(3, 4\)",
    ),
    "one group": (lambda: parametrize_with_laws(SignFlip()), TypeError, r"takes a list of groups: got SignFlip\(\)"),
    "tolerance in words": (
        lambda: check_group(Flip(), tolerance="a"),
        TypeError,
        r"must be a number: got 'a'",
    ),
    "half an example": (
        lambda: parametrize_with_laws([Flip()], max_examples=2.5),
        TypeError,
        r"max_examples must be a whole number: got 2\.5",
    ),
    "no tolerance at once": (
        lambda: parametrize_with_laws([Flip()], tolerance=0),
        ValueError,
        "be positive: got 0",
    ),
    "exact forgotten": (
        lambda: check_group(WithoutExact()),
        TypeError,
        r"WithoutExact must set exact = True",
    ),
    "order forgotten": (lambda: check_group(WithoutOrder()), TypeError, r"WithoutOrder must set order"),
    "complex numbers": (
        lambda: check_group(OnKeys({0: Flip()}), (torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.complex64))[1:]),
        TypeError,
        r"needs floating-point tensors",
    ),
    "no tolerance": (lambda: check_group(Flip(), tolerance=0.0), ValueError, r"tolerance must be positive: got 0\.0"),
    "no examples": (lambda: check_group(Flip(), max_examples=0), ValueError, r"must be at least 1: got 0"),
    "no groups": (
        lambda: parametrize_with_laws([]),
        ValueError,
        r"needs at least one group: got an empty list, which wo",
    ),
    "groups that are none": (lambda: parametrize_with_laws([3]), TypeError, r"checks a Group.*got 3"),
    "a triple": (
        lambda: parametrize_with_laws([(Flip(), None, 3)]),
        TypeError,
        r"or pairs \(group, example_input\): got",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def test_a_group_that_acts_on_nothing_that_is_known():
    class Picky(Shift):
        def transform(self, index, x):
            raise ValueError("only Sundays")

    with pytest.raises(
        ValueError, match=r"found no input that .*Picky\(\) acts on\. Give one as example_input.*Sundays"
    ):
        check_group(Picky())
    with pytest.raises(ValueError, match=r"Picky\(\) refuses torch\.float32 of shape \(1, 3\)\. only Sundays"):
        check_group(Picky(), SHIFTED)


# ------------------------------------------------------------------------------------------- in a test suite


def test_one_test_per_group_and_law():
    mark = parametrize_with_laws([(Shift(), SHIFTED), (Reversed(), SQUARES)], max_examples=20).mark
    assert mark.args[0] == ("group", "law")
    assert [item.id for item in mark.args[1]] == [
        f"{name}-{law}" for name, law in product(["Shift()", "Reversed()"], LAWS)
    ]
    broken = []
    for item in mark.args[1]:
        group, law = item.values
        try:
            law(group)
        except LawError as error:
            broken.append((item.id, error.law))
    assert broken == [("Reversed()-compatibility", "compatibility"), ("Reversed()-maps", "maps")]


def test_ids_read_well():
    items = parametrize_with_laws([CyclicRotation(4)]).mark.args[1]
    assert "CyclicRotation(order=4)-compatibility" in [item.id for item in items]


def test_an_input_that_the_group_cannot_act_on_fails_each_law():
    for item in parametrize_with_laws([(CyclicRotation(4), torch.zeros(1, 2, 3))]).mark.args[1]:
        group, law = item.values
        with pytest.raises(ValueError, match="check_group needs an input that the group acts on"):
            law(group)


def test_laws_can_be_called_by_hand():
    g, h, x = torch.tensor(1), torch.tensor(2), torch.randn(2, 3)
    each = torch.tensor([1, 2])
    arguments = {"f": g, "g": g, "h": h, "x": x, "each": each, "probe": x[:1]}
    for law in LAWS.values():
        names = law.__code__.co_varnames[1 : law.__code__.co_argcount]
        law(Shift(), **{name: arguments[name] for name in names if name in arguments})


# ----------------------------------------------------------------------------------------- without hypothesis


def run_without(module, code):
    blocked = f"import sys\nsys.modules[{module!r}] = None\n{code}"
    return subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, cwd=ROOT, check=False)


def test_without_hypothesis_invreg_works_and_testing_says_what_to_install():
    assert run_without("hypothesis", "import invreg\nassert invreg.Flip().order == 2").returncode == 0
    answer = run_without("hypothesis", "import invreg.testing")
    assert answer.returncode == 1
    assert answer.stderr.strip().endswith(
        'ImportError: invreg.testing needs hypothesis: python -m pip install "invreg[test]"'
    )
    assert "The above exception was the direct cause" in answer.stderr


def test_only_the_test_suite_needs_pytest():
    code = "import torch\nfrom invreg import SignFlip\nfrom invreg.testing import check_group\n"
    assert run_without("pytest", code + "check_group(SignFlip(), torch.zeros(1, 2), max_examples=2)").returncode == 0


def test_nothing_in_the_package_prints():
    for path in (ROOT / "invreg" / "testing").glob("*.py"):
        called = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in called


def test_signs_of_zeros_count_for_an_exact_group():
    class Subtracting(SignFlip):
        def transform(self, index, x):
            return 0 - x if index else x.clone()

        def transform_each(self, g, x):
            return torch.where(g.view(-1, 1) == 1, 0 - x, x)

    with pytest.raises(LawError, match="bit by bit: they differ in the signs of zeros"):
        check_group(Subtracting(), torch.zeros(1, 2))


class TestMistakes:
    """What is named as the likely mistake is the mistake."""

    def test_an_abelian_group_is_not_said_to_be_reversed(self):
        class Rounding(Turn):
            def compose(self, g, h):
                return super().compose(g, h).float().double()

        error = error_of(Rounding(), POINTS.double(), tolerance=1e-9)
        assert "Likely mistake" not in str(error)

    def test_even_indices_are_not_all_but_the_last(self):
        class Even(Shift):
            def sample(self, n, rng=None):
                return 2 * torch.randint(2, (n,), generator=rng)

        error = error_of(Even(), SHIFTED)
        assert error.law == "uniformity"
        assert "Likely mistake" not in str(error)

    def test_a_device_is_no_dtype(self):
        class OnTheCpu(Shift):
            def transform(self, index, x):
                return torch.zeros(x.shape) if x.device.type == "meta" else x.roll(index, -1)

        assert "a tensor is made without device=x.device" in str(error_of(OnTheCpu(), SHIFTED))

    def test_a_range_of_a_group_that_has_no_uniform_distribution(self):
        class Global(Gain):
            local = False

        error = error_of(Global(), torch.zeros(1, 3))
        assert error.law == "uniformity"
        assert "set local = True if no uniform distribution exists" in str(error)

    def test_a_wrong_product_is_not_blamed_on_the_inverse(self):
        class Forgetful(Dihedral):
            """Its product forgets that a mirror reverses turns; its inverse is right."""

            def compose(self, g, h):
                return (g // 4 + h // 4) % 2 * 4 + (g + h) % 4

        with pytest.raises(LawError) as broken:
            check_group(Forgetful(4), torch.zeros(1, 4, 4))
        assert broken.value.law == "inverse"
        assert "inverse undoes the action, so that compose looks wrong" in str(broken.value)

    def test_a_shape_that_nobody_gave_may_be_the_mistake(self):
        class OnColours(SignFlip):
            """Trades the first two of three colours; its maps stay, which is wrong."""

            def transform(self, index, x):
                return x[:, [1, 0, 2]] if index else x.clone()

            transform_each = FiniteGroup.transform_each

        with pytest.raises(LawError, match=r"were chosen here: if the group acts on others, give example_input\."):
            check_group(OnColours())
        with pytest.raises(LawError) as broken:
            check_group(OnColours(), torch.zeros(1, 3, 5))
        assert "chosen here" not in str(broken.value)
