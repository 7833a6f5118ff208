"""What is a group, and what does it owe its users?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from math import prod
from operator import index as whole_number
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from invreg.groups.transformations import IndexedTransformations, Transformations

if TYPE_CHECKING:
    from invreg.groups.custom import ActionGroup, PermutationGroup

_MANY = 1_000
"""From how many elements on those drawn twice are drawn again, rather than all put in a random order."""

_MOST_DRAWS = 10_000
"""How often an element is drawn anew before there are thought to be no others."""

_COMPILED_DRAWS = 16
"""The same in compiled code, which cannot stop when it is done."""


class Group(Transformations):
    """A group of transformations together with its left action on batches.

    An element is a tensor of ``element_shape``; a stack of elements has leading dimensions. So composing,
    inverting, sampling and acting are batched, and no Python object is made per element.

    A subclass sets ``exact`` (and ``element_shape``, ``element_dtype`` where elements are not indices) and
    defines ``identity``, ``compose``, ``inverse``, ``sample`` and ``act``; it overrides ``act_on_map`` where the
    group also changes values. Groups are values: make them frozen dataclasses, and they compare, hash, print
    and pickle by value.

    Attributes:
        element_shape: Shape of one element; ``()`` for the index of a finite group.
        element_dtype: Dtype of elements; int64 for indices.
        exact: True where the action only moves or negates entries, so that it is a group action bit for bit.
            False where it rounds or interpolates.
        local: True where no uniform distribution exists or is meant, so that ``sample`` draws from a bounded range,
            which products of elements may leave. They are elements all the same.
    """

    local: bool = False

    @property
    @abstractmethod
    def identity(self) -> Tensor:
        """The element that changes nothing, shape ``element_shape``, on the CPU."""

    @abstractmethod
    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """The product ``gh``, which acts as ``h`` first and ``g`` second.

        Args:
            g: Elements, shape ``(..., *element_shape)``.
            h: Elements, of a shape that broadcasts against ``g``.

        Returns:
            Elements, in the broadcast shape.
        """

    @abstractmethod
    def inverse(self, g: Tensor) -> Tensor:
        """The elements that undo ``g``.

        Args:
            g: Elements, shape ``(..., *element_shape)``.

        Returns:
            Elements, same shape as ``g``.
        """

    @abstractmethod
    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws elements uniformly (by the Haar measure), or from a bounded range of a ``local`` group.

        Args:
            n: Number of elements.
            rng: Source of randomness; None uses torch's global one.

        Returns:
            Shape ``(n, *element_shape)``, on the device of ``rng`` (None: the CPU).
        """

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Applies elements to a scalar field over the inputs' domain, such as a saliency map.

        The same as ``act`` unless the group also changes values: a map says *where*, so a sign flip leaves it
        alone and a rotation turns it.

        Args:
            g: As in ``act``.
            m: Maps, shape ``(N, ...)`` with as many axes as the inputs; an axis summed away has size 1.

        Returns:
            Same shape, dtype and device as ``m``.
        """
        return self.act(g, m)

    def realign(self, g: Tensor, m: Tensor) -> Tensor:
        """Moves maps back by the inverse elements; see ``Transformations.realign``."""
        return self.act_on_map(self.inverse(g), m)

    def sample_non_identity(self, n: int, k: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws ``k`` different non-identity elements for each of ``n`` samples; see ``Transformations``."""
        if k < 1:
            raise ValueError(f"{self!r} draws 1 or more elements per sample: got {k}.")
        drawn = self.sample(n * k, rng).view(n, k, *self.element_shape).transpose(0, 1).contiguous()
        if self.element_dtype.is_floating_point:  # one of uncountably many, never drawn twice nor the identity
            return drawn
        taken = self.identity.to(drawn.device).expand(1, n, *self.element_shape)
        compiling = torch.compiler.is_compiling()  # when it cannot be seen whether another draw is needed
        for row in drawn:
            for _ in range(_COMPILED_DRAWS if compiling else _MOST_DRAWS):
                again = (taken == row).reshape(len(taken), n, prod(self.element_shape)).all(2).any(0)
                if not compiling and not again.any():
                    break
                row = torch.where(again.view(n, *[1] * len(self.element_shape)), self.sample(n, rng), row)
            else:
                if not compiling:
                    raise ValueError(f"{self!r} has too few elements to draw {k} others than the identity.")
            taken = torch.cat([taken, row[None]])
        return taken[1:]

    def __mul__(self, other: Group) -> Group:
        """The direct product, where the two actions commute; see ``DirectProduct``."""
        from invreg.groups.product import DirectProduct

        return DirectProduct(self, other) if isinstance(other, Group) else NotImplemented


class FiniteGroup(IndexedTransformations, Group):
    """A group with ``order`` elements, named by the indices ``0 ... order - 1``; 0 is the identity.

    A subclass sets ``order`` and ``exact`` and defines ``compose``, ``inverse`` and how it acts: either
    ``transform(index, x)``, one element at a time by its Python index (the rest is derived), or ``act`` itself.

    Attributes:
        order: Number of elements, the identity included.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class ReversedTime(FiniteGroup):
        ...     order = 2
        ...     exact = True
        ...
        ...     def compose(self, g, h):
        ...         return (g + h) % 2
        ...
        ...     def inverse(self, g):
        ...         return g
        ...
        ...     def transform(self, index, x):
        ...         return x.flip(-1) if index else x
        >>> ReversedTime().act(torch.tensor([0, 1]), torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
        tensor([[1., 2.],
                [2., 1.]])
    """

    @property
    def identity(self) -> Tensor:
        """The index 0."""
        return torch.zeros((), dtype=torch.int64)

    def generators(self) -> Tensor:
        """Elements whose products are the whole group, shape ``(n,)``, int64; all but the identity if unknown."""
        return self.non_identity_elements()

    def sample_non_identity(self, n: int, k: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws ``k`` different non-identity elements for each of ``n`` samples; see ``Transformations``."""
        if self.order > _MANY and 0 < 2 * k < self.order:  # too many to give each a random key
            return Group.sample_non_identity(self, n, k, rng)
        return super().sample_non_identity(n, k, rng)

    def cayley_table(self) -> Tensor:
        """The multiplication table: entry ``[g, h]`` is ``gh``, shape ``(order, order)``, int64."""
        g = self.elements()
        return self.compose(g[:, None], g[None, :])

    @overload
    def __mul__(self, other: FiniteGroup) -> FiniteGroup: ...

    @overload
    def __mul__(self, other: Group) -> Group: ...

    def __mul__(self, other: Group) -> Group:
        """The direct product, a ``FiniteGroup`` if both are; see ``DirectProduct``."""
        return super().__mul__(other)

    @staticmethod
    def from_actions(
        actions: Sequence[Callable[[Tensor], Tensor]], *, input_shape: Sequence[int] | None = None
    ) -> ActionGroup:
        """Makes a group from one callable per element, the identity first.

        The multiplication table is found by acting on a probe whose entries are all different, and verified: a
        list that is not closed, that does not begin with the identity or that names an element twice is refused.

        Args:
            actions: Callables that take a batch ``(N, ...)`` and return one of the same shape and dtype.
            input_shape: Shape of one sample, for actions that take only some shapes. None tries a few.

        Returns:
            The group; element ``i`` acts as ``actions[i]``.

        Raises:
            ValueError: The list is no group, or no probe was found.
            RuntimeError: An action raised on a probe of ``input_shape``.

        Example:
            >>> group = FiniteGroup.from_actions([lambda x: x, lambda x: x.flip(-1)])
            >>> group.cayley_table()
            tensor([[0, 1],
                    [1, 0]])
        """
        from invreg.groups.custom import ActionGroup

        return ActionGroup(tuple(actions), None if input_shape is None else tuple(input_shape))

    @staticmethod
    def from_permutations(
        generators: Sequence[Sequence[int]], *, dim: int = -1, max_order: int = 1_000
    ) -> PermutationGroup:
        """Makes the group that some permutations of the positions along an axis generate.

        Args:
            generators: Permutations of ``0 ... n - 1``; the entry at position ``i`` moves to ``generator[i]``.
            dim: The axis that they permute, which has size n; not the batch axis.
            max_order: Where the closure stops with an error.

        Returns:
            The group. The identity is 0; generators and their products follow in the order in which they are found.

        Raises:
            TypeError: ``generators`` is no list of lists of whole numbers.
            ValueError: A generator is no permutation, or the group has more than ``max_order`` elements.

        Example:
            >>> group = FiniteGroup.from_permutations([[1, 2, 0]])
            >>> group.order
            3
            >>> group.act(torch.tensor(1), torch.tensor([[10.0, 20.0, 30.0]]))
            tensor([[30., 10., 20.]])
        """
        from invreg.groups.custom import PermutationGroup

        try:
            permutations = tuple(tuple(whole_number(i) for i in generator) for generator in generators)
        except TypeError as error:
            raise TypeError(
                f"generators must be a list of permutations, each a list of whole numbers, e.g. [[1, 2, 0]]: {error}."
            ) from error
        return PermutationGroup(permutations, dim, max_order)
