"""Is a function told that is not invariant, with the worst element and sample?"""

import pytest
import torch

from invreg import CyclicPermutation, CyclicRotation, Dihedral, Flip, OnKeys, SignFlip, SpatialRotation
from invreg.testing import assert_equivariant, assert_invariant

C4 = CyclicRotation(4)


def images(n=3, dtype=torch.float64):
    return torch.randn(n, 1, 4, 4, dtype=dtype)


def largest(x):
    return x.amax((1, 2, 3))


def first_pixel(x):
    return x[:, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_an_invariant_function_passes(dtype):
    assert assert_invariant(largest, C4, images(dtype=dtype)) is None
    assert_invariant(lambda x: x.mean((1, 2, 3)), Dihedral(4), images(dtype=dtype))
    assert_invariant(lambda x: x.flatten(1).mean(1).sign().long(), C4, torch.ones(2, 1, 4, 4, dtype=dtype))


def test_an_infinite_group_is_sampled():
    points = torch.randn(2, 5, 3, dtype=torch.float64)
    calls = []

    def norms(x):
        calls.append(x)
        return x.norm(dim=2)

    assert_invariant(norms, SpatialRotation(), points)
    assert len(calls) == 1 + 16
    with pytest.raises(
        AssertionError, match=r"under SpatialRotation\(\): element \[\[.*\]\] changes the output of samp"
    ):
        assert_invariant(lambda x: x[..., 0], SpatialRotation(), points)


def test_the_worst_element_and_sample_are_named():
    x = torch.zeros(3, 1, 2, 2)
    x[1, 0, 0, 1] = 0.5
    x[2, 0, 1, 0] = -4  # comes to the first pixel with three quarter turns
    with pytest.raises(
        AssertionError,
        match=r"^The function is not invariant under CyclicRotation\(order=4\): element 3 changes the output of sample "
        r"2 by 4, from 0 to -4 at position \(\), where 1e-05 is allowed \(atol=1e-05, rtol=1e-05\)\. "
        r"2 of 12 pairs of element and sample fail\.$",
    ):
        assert_invariant(first_pixel, C4, x)


def test_only_sampled_elements_are_tried_and_rng_decides_which():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    drawn = []

    def recording(x):
        drawn.append(int(x[0, 0, 0, 0]))
        return largest(x)

    for _ in range(2):
        assert_invariant(recording, C4, x, samples=5, rng=torch.Generator().manual_seed(0))
    assert drawn[:6] == drawn[6:]
    before = torch.get_rng_state()
    assert_invariant(recording, C4, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(drawn) == 12 + 5


def test_one_element_per_sample_is_named_alone():
    with pytest.raises(AssertionError, match=r"element [123] changes the output of sample [012] by"):
        assert_invariant(first_pixel, C4, images(), samples=8)


def test_tolerances():
    def nearly(x):
        return largest(x) + 1e-3 * first_pixel(x).sign()

    x = images(20)
    with pytest.raises(AssertionError, match=r"by 0\.002, .*\(atol=1e-09, rtol=1e-09\)"):
        assert_invariant(nearly, C4, x)
    assert_invariant(nearly, C4, x, atol=3e-3)
    assert_invariant(lambda x: 100 + nearly(x), C4, x, rtol=1e-4)
    with pytest.raises(AssertionError, match=r"atol=0, rtol=0\.0001"):
        assert_invariant(nearly, C4, x, rtol=1e-4, atol=0.0)


def test_nan_is_no_agreement():
    with pytest.raises(AssertionError, match=r"of sample 0 under element 0 cannot be compared .*, where it is nan"):
        assert_invariant(lambda x: largest(x) * float("nan"), C4, images())


def test_a_function_that_is_random_is_told():
    dropout = torch.nn.Dropout(0.5)
    with pytest.raises(AssertionError, match=r"element 0 .*is it random, or a module in training mode\?"):
        assert_invariant(lambda x: dropout(torch.ones(len(x), 50)), Flip(), images())
    assert_invariant(lambda x: dropout.eval()(torch.ones(len(x), 50)), Flip(), images())


def test_nothing_is_differentiated():
    layer = torch.nn.Linear(16, 2, dtype=torch.float64)
    seen = []

    def model(x):
        y = layer(x.flatten(1)) * 0
        seen.append(y.requires_grad)
        return y

    assert_invariant(model, C4, images())
    assert not any(seen)


def test_equivariant_functions_pass():
    x = images()
    assert assert_equivariant(torch.relu, C4, C4, x) is None
    assert_equivariant(lambda x: -x, Dihedral(4), Dihedral(4), x)
    assert_equivariant(lambda x: x.sum((1, 2, 3))[:, None], SignFlip(), SignFlip(), x)
    assert_equivariant(lambda x: x[:, 0].mean(1), CyclicPermutation(4), CyclicPermutation(4), x)


def test_the_worst_pair_of_a_function_that_is_not_equivariant():
    with pytest.raises(
        AssertionError,
        match=r"^The function is not equivariant from Flip\(dim=-1\) to SignFlip\(\): element 1 changes f\(g·x\), "
        r"compared to g·f\(x\), of sample 0 by 3, from -1 to 2 at position \(0,\)",
    ):
        assert_equivariant(lambda x: x[:, :1], Flip(), SignFlip(), torch.tensor([[1.0, 2.0]]))


def test_inputs_of_several_tensors():
    group = OnKeys({"image": C4, "mask": C4})
    batch = {"image": images(), "mask": torch.arange(27).view(3, 3, 3), "id": torch.arange(3)}
    assert_invariant(lambda batch: largest(batch["image"]) + batch["mask"].sum((1, 2)), group, batch)
    with pytest.raises(AssertionError, match="is not invariant under OnKeys"):
        assert_invariant(lambda batch: batch["mask"][:, 0, 0], group, batch)
    pair = (images(), images())
    assert_equivariant(lambda pair: pair[0] + pair[1], OnKeys({0: C4, 1: C4}), C4, pair)


def test_a_function_that_writes_into_its_input_does_no_harm():
    x = images()
    before = x.clone()
    assert_invariant(lambda x: x.mul_(0).sum((1, 2, 3)), C4, x)
    assert torch.equal(x, before)
    with pytest.raises(AssertionError, match="is not invariant"):
        assert_invariant(lambda x: (first_pixel(x).clone(), x.zero_())[0], C4, x)


def test_imaginary_parts_count():
    def spectrum(x):
        return torch.fft.fft(x[:, 0, 0])[:, 1]

    with pytest.raises(AssertionError, match=r"from .*j to .*j at position"):
        assert_invariant(lambda x: 1j * spectrum(x).imag + 0.0, C4, images())
    assert_invariant(lambda x: torch.complex(largest(x), -largest(x)), C4, images())


def test_infinite_outputs_that_agree_pass():
    assert_invariant(lambda x: x.new_full((len(x),), float("inf")), C4, images())
    with pytest.raises(AssertionError, match=r"where it is inf, and -inf is expected|where it is -inf, and inf is exp"):
        assert_invariant(lambda x: first_pixel(x) / 0, C4, images())


REFUSED = {
    "half a draw": (lambda: assert_invariant(largest, C4, images(), samples=0.5), TypeError, r"whole number: got 0\.5"),
    "no function": (lambda: assert_invariant(3, C4, images()), TypeError, r"f must be callable.*got int"),
    "no group": (lambda: assert_invariant(largest, "C4", images()), TypeError, r"group must be a Group.*got str"),
    "a class": (lambda: assert_invariant(largest, Flip, images()), TypeError, r"must be a Group.*got the class Flip"),
    "no tensor": (lambda: assert_invariant(largest, C4, [1.0]), TypeError, r"inputs must be a tensor.*got list"),
    "no samples": (lambda: assert_invariant(largest, C4, images(0)), ValueError, r"at least one sample: got shape \(0"),
    "no draws": (lambda: assert_invariant(largest, C4, images(), samples=0), ValueError, r"must be at least 1: got 0"),
    "not square": (
        lambda: assert_invariant(largest, C4, torch.zeros(2, 1, 3, 4)),
        ValueError,
        r"inputs must be such that the group acts on them: CyclicRotation\(order=4\) refuses torch\.float32 of shape "
        r"\(2, 1, 3, 4\)\. CyclicRotation\(order=4\) turns square images",
    ),
    "no output": (lambda: assert_invariant(lambda x: 1.0, C4, images()), TypeError, r"must return a tensor: got float"),
    "a mean over the batch": (
        lambda: assert_invariant(torch.mean, C4, images()),
        ValueError,
        r"one output per sample, shape \(3, \.\.\.\): got shape \(\)\. Keep the batch axis",
    ),
    "no output group": (
        lambda: assert_equivariant(largest, C4, None, images()),
        TypeError,
        r"output_group must be a G",
    ),
    "another output group": (
        lambda: assert_equivariant(torch.relu, C4, Flip(), images()),
        ValueError,
        r"must have the elements of group, CyclicRotation\(order=4\), .*: got Flip\(dim=-1\), with",
    ),
    "an output group for other outputs": (
        lambda: assert_equivariant(largest, C4, C4, images()),
        ValueError,
        r"output_group must act on what the function returns: CyclicRotation\(order=4\) refuses torch\.float64 of "
        r"shape \(3,\)\.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def test_a_function_whose_output_dtype_depends_on_the_input_is_refused():
    def picky(x):
        return largest(x) if x[0, 0, 0, 0] > 0 else largest(x).float()

    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 1] = 1
    with pytest.raises(ValueError, match=r"same dtype for x and g·x: got torch\.float32 and torch\.float64"):
        assert_invariant(picky, C4, x.double())


def test_a_function_whose_output_shape_depends_on_the_input_is_refused():
    def crop(x):
        return x[:, :, :, : 1 + int(x[0, 0, 0, 0] > 0)]

    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 1] = 1
    with pytest.raises(ValueError, match=r"same shape for x and g·x: got \(1, 1, 2, 1\) and \(1, 1, 2, 2\)"):
        assert_invariant(crop, C4, x)
