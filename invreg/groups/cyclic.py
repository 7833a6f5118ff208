"""How do elements compose that count the steps of one generator?"""

from __future__ import annotations

from torch import Tensor

from invreg.groups.contract import FiniteGroup


class CyclicGroup(FiniteGroup):
    """A finite group of the powers of one element: index ``i`` stands for its ``i``-th power.

    A subclass sets ``order`` and ``exact`` and defines ``transform``, as for any ``FiniteGroup``.

    Example:
        >>> import torch
        >>> class ReversedTime(CyclicGroup):
        ...     order = 2
        ...     exact = True
        ...
        ...     def transform(self, index, x):
        ...         return x.flip(-1) if index else x
        >>> ReversedTime().act(torch.tensor([0, 1]), torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
        tensor([[1., 2.],
                [2., 1.]])
    """

    def generators(self) -> Tensor:
        """The element 1, shape ``(1,)``, or none where it is the identity."""
        return self.non_identity_elements()[:1]

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """Adds the indices modulo the order; see ``Group.compose``."""
        self._check_elements(g, h)
        return (g + h) % self.order

    def inverse(self, g: Tensor) -> Tensor:
        """Negates the indices modulo the order; see ``Group.inverse``."""
        self._check_elements(g)
        return -g % self.order
