"""Is my group right, and is my function invariant under it?

Strategies for hypothesis, the laws that every group keeps, and three ways in: ``check_group`` by hand,
``parametrize_with_laws`` in a test suite, the strategies by themselves. For functions, ``assert_invariant`` and
``assert_equivariant``. Needs hypothesis, which nothing else in invreg does.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401  # so that its absence is told here, with what to do about it
    import hypothesis.extra.numpy as _arrays  # noqa: F401
except ImportError as error:
    raise ImportError('invreg.testing needs hypothesis: python -m pip install "invreg[test]"') from error

from invreg.testing.check import LawError, check_group, parametrize_with_laws
from invreg.testing.functions import assert_equivariant, assert_invariant
from invreg.testing.laws import LAWS
from invreg.testing.strategies import (
    element_pairs,
    element_stacks,
    elements,
    finite_groups,
    image_shapes,
    inputs,
    smooth_inputs,
)

__all__ = [
    "LAWS",
    "LawError",
    "assert_equivariant",
    "assert_invariant",
    "check_group",
    "element_pairs",
    "element_stacks",
    "elements",
    "finite_groups",
    "image_shapes",
    "inputs",
    "parametrize_with_laws",
    "smooth_inputs",
]
