"""Does each word name the group that it is documented to name?"""

import re

import pytest
import torch
import torch.nn.functional as F

from invreg import (
    CyclicPermutation,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    Flip,
    PlanarRotation,
    Scaling,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    TransformationSet,
    Translation,
    Trivial,
)
from invreg.cli.groups import list_groups, parse_group

WORDS = {
    "C4": CyclicRotation(4),
    "c8": CyclicRotation(8),
    "D4": Dihedral(4),
    "D1": Dihedral(1),
    "T3": CyclicTranslation(3, -1),
    "T3:x": CyclicTranslation(3, -1),
    "T4:y": CyclicTranslation(4, -2),
    "t4:Y": CyclicTranslation(4, -2),
    "T5:2": CyclicTranslation(5, 2),
    "flip": Flip(-1),
    "flip:x": Flip(-1),
    "Flip:y": Flip(-2),
    "flip:-3": Flip(-3),
    "P3": CyclicPermutation(3, 1),
    "P3:1": CyclicPermutation(3, 1),
    "P12:x": CyclicPermutation(12, -1),
    "sign": SignFlip(),
    "SO2": PlanarRotation(),
    "so2:circle": PlanarRotation(circular_mask=True),
    "SO3": SpatialRotation(),
    "shift": Translation(1.0),
    "shift:2.5": Translation(2.5),
    "scale": Scaling(1.25),
    "scale:1.5": Scaling(1.5),
    "S10": SymmetricGroup(10, 1),
    "S10:1": SymmetricGroup(10, 1),
    "S5:-2,-1": SymmetricGroup(5, (-2, -1)),
    "S5:y,x": SymmetricGroup(5, (-2, -1)),
    "trivial": Trivial(),
    "T3:x*T3:y": CyclicTranslation(3, -1) * CyclicTranslation(3, -2),
    "T3:y * T3:x": CyclicTranslation(3, -2) * CyclicTranslation(3, -1),
    "C4*sign*P3": CyclicRotation(4) * SignFlip() * CyclicPermutation(3, 1),
    "SO2*sign": PlanarRotation() * SignFlip(),
    "tests.cli.test_groups:OWN": Dihedral(2),
    "tests.cli.test_groups:make_own": Dihedral(2),
    "tests.cli.test_groups:make_own*sign": Dihedral(2) * SignFlip(),
}

OWN = Dihedral(2)

NO_GROUP = object()


def make_own():
    return OWN


def failing():
    raise KeyError("own")


def blurred(width: float):
    """A blur as a plain sum over the pixels around each, for images whose edges are far away."""
    reach = max(1, round(3 * width))
    offsets = torch.arange(-reach, reach + 1).double()
    bell = torch.exp(-(offsets**2) / (2 * width**2))
    kernel = (bell[:, None] * bell) / bell.sum() ** 2

    def blur(x):
        return F.conv2d(x.flatten(0, 1)[:, None].double(), kernel[None, None], padding=reach).view(x.shape)

    return blur


@pytest.mark.parametrize("word", WORDS)
def test_word_names_the_group(word):
    found = parse_group(word)
    assert type(found) is type(WORDS[word])
    assert found == WORDS[word]


def test_words_tell_groups_apart():
    assert parse_group("T3:x") != parse_group("T3:y")
    assert parse_group("shift:2") != parse_group("shift:3")
    assert parse_group("SO2") != parse_group("SO2:circle")
    assert parse_group("T3:x*T3:y") != parse_group("T3:y*T3:x")


def test_every_documented_word_is_known_and_tested():
    rows = [re.split(r"  +", line) for line in list_groups().split("\n\n")[0].splitlines()[1:]]
    assert len(rows) == 17
    forms = {row[0] for row in rows}
    assert {"CN", "TN[:axis]", "blur:pixels", "package.module:name"} <= forms
    tested = {re.split(r"[\d:*]", word.lower())[0] for word in WORDS}
    for form, example, meaning in rows:
        assert meaning
        if form != "package.module:name":
            assert parse_group(example) is not None
        start = re.split(r"[\d:*]", example.lower())[0]
        assert start in tested | {"brightness", "contrast", "noise", "blur", "my_groups"}


class TestChanges:
    """Sets of changes are no groups, and do what they say."""

    x = torch.rand(2, 3, 16, 16)

    def applied(self, word):
        changes = parse_group(word)
        assert isinstance(changes, TransformationSet)
        assert changes.realigns
        return [changes.transform(index, self.x) for index in range(1, changes.order)]

    def test_brightness(self):
        brighter, darker = self.applied("brightness:0.2,-0.2")
        torch.testing.assert_close(brighter, self.x + 0.2)
        torch.testing.assert_close(darker, self.x - 0.2)

    def test_contrast(self):
        (flat,) = self.applied("contrast:0")
        torch.testing.assert_close(flat, self.x.mean((1, 2, 3), keepdim=True).expand_as(self.x))
        (same,) = self.applied("contrast:1")
        torch.testing.assert_close(same, self.x)
        (strong,) = self.applied("contrast:2")
        torch.testing.assert_close(strong.std((1, 2, 3)), 2 * self.x.std((1, 2, 3)))
        torch.testing.assert_close(strong.mean((1, 2, 3)), self.x.mean((1, 2, 3)))

    def test_noise(self):
        (little, much) = self.applied("noise:0.01,1")
        assert 0.008 < (little - self.x).std() < 0.012
        assert 0.8 < (much - self.x).std() < 1.2

    @pytest.mark.parametrize("width", [0.5, 1, 1.5])
    def test_blur(self, width):
        self.x = torch.zeros(2, 3, 16, 16)
        self.x[:, :, 6:10, 6:10] = torch.rand(2, 3, 4, 4)
        (smooth,) = self.applied(f"blur:{width}")
        torch.testing.assert_close(smooth.double(), blurred(width)(self.x), atol=1e-6, rtol=1e-5)

    def test_blur_keeps_a_constant_image(self):
        self.x = torch.full((1, 1, 5, 7), 3.0)
        (smooth,) = self.applied("blur:2")
        torch.testing.assert_close(smooth, self.x)

    def test_they_have_names_that_stay(self):
        changes = parse_group("brightness:0.2,-0.2")
        assert repr(changes) == "TransformationSet([brightness 0.2, brightness -0.2])"
        assert [changes.describe(g) for g in torch.arange(3)] == ["identity", "brightness 0.2", "brightness -0.2"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("C5x", "'C5x' is no group"),
        ("", "'' is no group"),
        ("C4*", "'' is no group"),
        ("C0", "order of 1 or more"),
        ("C4:x", "nothing follows"),
        ("sign:1", "nothing follows"),
        ("T3:z", "x, y or its number"),
        ("T3:0", "batch axis"),
        ("S5:1,z", "x, y or its number"),
        ("shift:far", "expected a number"),
        ("shift:nan", "finite"),
        ("shift:0", "more than 0"),
        ("scale:1", "above 1"),
        ("SO2:square", "only circle"),
        ("brightness", "amounts must follow"),
        ("brightness:a", "expected a number"),
        ("noise:-1", "above 0"),
        ("blur:0", "above 0"),
        ("blur:1000", "at most 100"),
        ("C4*brightness:1", "no group, so that it has no products"),
        ("brightness:1*C4", "no group, so that it has no products"),
        ("C4*flip", "must commute"),
        ("C" + 5000 * "9", "written CN"),
        ("tests.cli.test_groups:NO_GROUP", "must be a Group"),
        ("tests.cli.test_groups:failing", "KeyError"),
        ("tests.cli.test_groups:absent", "is not there"),
        ("no_such_module_at_all:x", "cannot be imported"),
    ],
)
def test_other_words_are_refused(word, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_group(word)
