"""How far may a result be from what it should be? One table for all tests.

An action that only moves or negates entries is compared exactly, in every dtype. What rounds, a linear map or an
average, is compared to the tolerance of its dtype, relative and absolute.
"""

from torch import Tensor, bfloat16, float16, float32, float64
from torch.testing import assert_close

LINEAR = {float64: 1e-12, float32: 1e-5, float16: 1e-2, bfloat16: 4e-2}


def assert_exact(actual: Tensor, expected: Tensor, message: str | None = None) -> None:
    """Raises unless both hold the same values, in the same shape, dtype and device; NaN equals nothing."""
    assert_close(actual, expected, rtol=0, atol=0, msg=_before(message))


def assert_linear(actual: Tensor, expected: Tensor, message: str | None = None) -> None:
    """Raises unless both agree up to the rounding of a linear map in their dtype."""
    tolerance = LINEAR[actual.dtype]
    assert_close(actual, expected, rtol=tolerance, atol=tolerance, msg=_before(message))


def _before(message: str | None):
    return None if message is None else lambda found: f"{message}\n{found}"
