"""Do two audits say the same?"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from invreg import InvarianceReport


def assert_same_report(
    actual: InvarianceReport,
    expected: InvarianceReport,
    tolerance: float = 1e-12,
    *,
    but: Sequence[str] = (),
    pictures: bool = True,
) -> None:
    """Raises unless all that two reports say is the same, numbers up to rounding, but for ``provenance`` and ``but``.

    With ``pictures`` the images and maps of single samples are compared too, which dictionaries leave out.
    """
    left_out = {"provenance", *but}
    assert_same(
        {name: value for name, value in actual.to_dict().items() if name not in left_out},
        {name: value for name, value in expected.to_dict().items() if name not in left_out},
        tolerance,
    )
    if not pictures:
        return
    assert [one.index for one in actual.saliency_examples] == [one.index for one in expected.saliency_examples]
    for one, other in zip(actual.saliency_examples, expected.saliency_examples, strict=True):
        assert (one.target, one.names) == (other.target, other.names)
        for name in ("inputs", "maps"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=tolerance, atol=tolerance)
    for one, other in zip(actual.worst_samples, expected.worst_samples, strict=True):
        for name in ("input", "transformed"):
            if getattr(other, name) is None:
                assert getattr(one, name) is None
                continue
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-12, where: str = "report") -> None:
    """Raises unless two nests of dictionaries and lists are built alike and hold the same; says where not."""
    if isinstance(expected, dict):
        assert isinstance(actual, dict), where
        assert actual.keys() == expected.keys(), where
        for name in expected:
            assert_same(actual[name], expected[name], tolerance, f"{where}.{name}")
    elif isinstance(expected, (list, tuple)):
        assert isinstance(actual, (list, tuple)), where
        assert len(actual) == len(expected), where
        for place, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same(one, other, tolerance, f"{where}[{place}]")
    elif isinstance(expected, float):
        assert isinstance(actual, (int, float)), where
        assert math.isclose(actual, expected, rel_tol=tolerance, abs_tol=tolerance), f"{where}: {actual}, {expected}"
    else:
        assert actual == expected, f"{where}: {actual!r}, {expected!r}"
