"""Are the tensors of a batch found, whatever holds them, and put together again?"""

from collections import OrderedDict
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from invreg.groups.batch import first_tensor, map_tensors, rebuilt, stack, tensors
from tests.tolerances import assert_exact


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


A, B = torch.arange(6.0).view(2, 3), torch.arange(2)

FORMS = {
    "dict": {"a": A, "b": B},
    "ordered dict": OrderedDict(a=A, b=B),
    "other mapping": MappingProxyType({"a": A, "b": B}),
    "tuple": (A, B),
    "list": [A, B],
    "named tuple": Pair(A, B),
}

KEYS = {"dict": ["a", "b"], "ordered dict": ["a", "b"], "other mapping": ["a", "b"]}

TYPES = {"dict": dict, "ordered dict": dict, "other mapping": dict, "tuple": tuple, "list": list, "named tuple": Pair}

every_form = pytest.mark.parametrize("form", FORMS)


def parts(batch) -> list[Tensor]:
    return list(batch.values()) if isinstance(batch, dict) else list(batch)


@every_form
class TestForms:
    def test_tensors(self, form):
        found = list(tensors(FORMS[form]))
        assert [key for key, _ in found] == KEYS.get(form, [0, 1])
        assert found[0][1] is A
        assert found[1][1] is B

    def test_first(self, form):
        assert first_tensor(FORMS[form]) is A

    def test_map(self, form):
        doubled = map_tensors(lambda x: 2 * x, FORMS[form])
        assert type(doubled) is TYPES[form]
        assert len(doubled) == 2
        assert_exact(parts(doubled)[0], 2 * A)
        assert_exact(parts(doubled)[1], 2 * B)

    def test_map_over_several(self, form):
        tens = map_tensors(lambda x: 10 + x, FORMS[form])
        total = map_tensors(lambda x, y, z: x + y - z, FORMS[form], tens, FORMS[form])
        assert type(total) is TYPES[form]
        assert_exact(parts(total)[0], 10 + A)
        assert_exact(parts(total)[1], 10 + B)

    def test_order_of_the_batches(self, form):
        tens = map_tensors(lambda x: 10 + x, FORMS[form])
        assert_exact(parts(map_tensors(torch.sub, FORMS[form], tens))[0], torch.full((2, 3), -10.0))

    def test_rebuilt(self, form):
        entries = dict(zip(KEYS.get(form, [0, 1]), (B, A), strict=True))
        again = rebuilt(FORMS[form], entries)
        assert type(again) is TYPES[form]
        assert parts(again)[0] is B
        assert parts(again)[1] is A

    def test_stack(self, form):
        twice = stack([FORMS[form], map_tensors(lambda x: x + 1, FORMS[form])])
        assert type(twice) is TYPES[form]
        assert_exact(parts(twice)[0], torch.stack([A, A + 1]))
        assert_exact(parts(twice)[1], torch.stack([B, B + 1]))

    def test_inputs_stay(self, form):
        map_tensors(lambda x: x + 1, FORMS[form])
        stack([FORMS[form]] * 2)
        assert_exact(A, torch.arange(6.0).view(2, 3))
        assert parts(dict(tensors(FORMS[form])))[0] is A


class TestOneTensor:
    def test_tensors(self):
        assert [key for key, _ in tensors(A)] == [None]
        assert next(iter(tensors(A)))[1] is A
        assert first_tensor(A) is A

    def test_map(self):
        assert_exact(map_tensors(lambda x: 2 * x, A), 2 * A)
        assert_exact(map_tensors(torch.sub, A, A + 1), -torch.ones(2, 3))

    def test_stack(self):
        assert_exact(stack([A, A + 1, A + 2]), torch.stack([A, A + 1, A + 2]))


def test_dicts_are_matched_by_key():
    """Not by the order in which they list their keys."""
    total = map_tensors(torch.sub, {"a": A, "b": B}, {"b": B + 1, "a": A + 2})
    assert list(total) == ["a", "b"]
    assert_exact(total["a"], torch.full((2, 3), -2.0))
    assert_exact(total["b"], torch.tensor([-1, -1]))


def test_a_key_that_one_lacks():
    with pytest.raises(KeyError, match="b"):
        map_tensors(torch.add, {"a": A, "b": B}, {"a": A})


def test_one_part():
    assert_exact(first_tensor({"only": B}), B)
    assert isinstance(map_tensors(torch.neg, (A,)), tuple)
    assert_exact(stack([[A]])[0], A[None])
