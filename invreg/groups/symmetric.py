"""How do all permutations act, of which there are too many to list?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import factorial

import torch
from torch import Tensor

from invreg.groups.contract import Group
from invreg.groups.positions import gather, in_cycles, span
from invreg.groups.transformations import draw_non_identity, in_words, uniform

_MOST_LISTED = 50_000
"""``elements`` lists up to 8! permutations."""

_MOST_KEYS = 6
"""Up to 6! permutations are drawn as from a list; among more, the same one is hardly ever drawn twice."""


@dataclass(frozen=True)
class SymmetricGroup(Group):
    """All permutations of ``n`` entries: the points of a set, the nodes of a graph, the tokens of a sequence.

    An element is a permutation ``g`` of ``0 ... n - 1``, shape ``(n,)``, int64; it moves the entry at position ``i`` to
    position ``g[i]``. There are ``n!`` of them, so that losses and audits draw some: give them ``samples=``. To run
    through all of a few, take ``Restricted`` or ``FiniteGroup.from_permutations``.

    Args:
        n: How many entries are permuted.
        dim: The axis, or several axes that are permuted together: ``(-2, -1)`` permutes the rows and the columns of
            an adjacency matrix alike. Each has size ``n``. Not the batch axis.

    Raises:
        TypeError: ``dim`` is no axis, nor a tuple of some.
        ValueError: ``n`` is below 1, or ``dim`` holds 0. When it acts: ``dim`` names no axis, or one twice.

    Example:
        >>> group = SymmetricGroup(3, dim=1)
        >>> group.act(torch.tensor([1, 2, 0]), torch.tensor([[10.0, 20.0, 30.0]]))
        tensor([[30., 10., 20.]])
        >>> SymmetricGroup(20).order
        2432902008176640000
    """

    n: int
    dim: int | tuple[int, ...] = 1

    exact = True

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"SymmetricGroup takes the number of entries, 1 or more: got {self.n!r}.")
        if isinstance(self.dim, list):
            object.__setattr__(self, "dim", tuple(self.dim))
        if not self._dims or not all(isinstance(dim, int) for dim in self._dims):
            raise TypeError(f"SymmetricGroup takes an axis as dim, or a tuple of axes: got {self.dim!r}.")
        if 0 in self._dims:
            raise ValueError(f"SymmetricGroup moves entries within a sample: got dim {self.dim}; 0 is the batch axis.")

    @property
    def element_shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived, where the base class has an attribute
        """``(n,)``."""
        return (self.n,)

    @property
    def order(self) -> int:  # type: ignore[override]  # derived, as above
        """``n!``, the number of permutations."""
        return factorial(self.n)

    @property
    def identity(self) -> Tensor:
        """The permutation ``0 ... n - 1``."""
        return torch.arange(self.n)

    def elements(self) -> Tensor:
        """All permutations in lexicographic order, identity first, shape ``(n!, n)``, int64.

        Raises:
            ValueError: There are more than 50,000.
        """
        if self.order > _MOST_LISTED:
            raise ValueError(
                f"{self!r} has {in_words(self.order)} elements, too many to list. Draw some with sample(), or set "
                "samples= in a loss or an audit."
            )
        return torch.tensor(list(permutations(range(self.n))))

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """Position ``i`` goes to ``g[h[i]]``; see ``Group.compose``."""
        self._check_elements(g, h)
        g = g.expand_as(g + h)  # so that the stacks have one shape
        return g.gather(-1, h.expand_as(g))

    def inverse(self, g: Tensor) -> Tensor:
        """From where each position is reached; see ``Group.inverse``."""
        self._check_form(g)
        return self._inverse(g)

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws permutations uniformly; see ``Group.sample``."""
        return uniform(n, self.n, rng).argsort(-1)

    def sample_non_identity(self, n: int, k: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws ``k`` different non-identity permutations for each of ``n`` samples; see ``Transformations``."""
        if not 0 < k < self.order:
            raise ValueError(
                f"{self!r} has {in_words(self.order - 1)} non-identity elements: cannot draw {k} different ones per "
                "sample."
            )
        if self.n > _MOST_KEYS and torch.compiler.is_compiling():  # there, looking for repetitions would cost more
            return self.sample(n * k, rng).view(n, k, self.n).transpose(0, 1)
        if self.n > _MOST_KEYS:
            return super().sample_non_identity(n, k, rng)
        indices = draw_non_identity(self.order, n, k, rng)
        return self.elements().to(indices.device)[indices]

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """Permutes along each of the axes, by one gather; see ``Transformations.act``."""
        self._check_fit(g, x)
        sources = self._inverse(g).to(x.device).view(-1, self.n)
        for start in self._axes(x):
            if x.shape[start] != self.n:
                raise ValueError(
                    f"{self!r} permutes {self.n} entries along axis {self.dim}: got inputs of shape {tuple(x.shape)}. "
                    "Set n to the number of entries, or dim to their axis."
                )
            x = gather(x, sources, start, start + 1)
        return x

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Permutes the entries of a map; leaves alone an axis that was summed away (size 1)."""
        self._check_action(g, m)
        kept = tuple(axis for axis in self._axes(m) if m.shape[axis] != 1)
        return SymmetricGroup(self.n, kept).act(g, m) if kept else m

    def _name(self, g: Tensor) -> str:
        return in_cycles(g.tolist())

    @property
    def _dims(self) -> tuple[int, ...]:
        return self.dim if isinstance(self.dim, tuple) else (self.dim,)

    def _axes(self, x: Tensor) -> list[int]:
        axes = [span(self, (dim,), x)[0] for dim in self._dims]
        if len(set(axes)) < len(axes):
            raise ValueError(f"{self!r} permutes each axis once: got dims {self.dim} for inputs of {x.ndim} axes.")
        return axes

    def _check_values(self, g: Tensor) -> None:
        self._inverse(g)

    def _inverse(self, g: Tensor) -> Tensor:
        """The inverse permutations; raises unless there are any."""
        checked = not torch.compiler.is_compiling() and g.numel() > 0
        if checked:
            low, high = g.aminmax()
            self._raise_unless(bool((low >= 0) & (high < self.n)), g)
        positions = torch.arange(self.n, device=g.device).expand(g.shape)
        inverse = torch.full_like(g, -1).scatter_(-1, g, positions)
        if checked:  # a position that is reached twice leaves another at -1, and the sum too small
            self._raise_unless(2 * int(inverse.sum()) == (self.n - 1) * g.numel(), g)
        return inverse

    def _raise_unless(self, holds: bool, g: Tensor) -> None:
        if not holds:
            raise ValueError(
                f"Elements of {self!r} are permutations, which hold each of 0 to {self.n - 1} once: got "
                + (f"a stack of shape {tuple(g.shape)} in which one does not." if g.ndim > 1 else "one that does not.")
            )
