"""What is a group, and what does it owe its users?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from operator import index as whole_number
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from invreg.groups.custom import ActionGroup, PermutationGroup
    from invreg.groups.product import DirectProduct


class Group(ABC):
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
            False where it interpolates.
    """

    element_shape: tuple[int, ...] = ()
    element_dtype: torch.dtype = torch.int64
    exact: bool

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
        """Draws elements uniformly (by the Haar measure), the identity included.

        Args:
            n: Number of elements.
            rng: Source of randomness; None uses torch's global one.

        Returns:
            Shape ``(n, *element_shape)``, on the device of ``rng`` (None: the CPU).
        """

    @abstractmethod
    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """Applies one element to a whole batch, or one element to each sample.

        A left action: ``act(compose(g, h), x) == act(g, act(h, x))``. The batch axis never moves and ``x`` is
        never written to. Differentiable in ``x``.

        Args:
            g: One element, shape ``element_shape``, or one per sample, shape ``(N, *element_shape)``. A stack
                lives on the device of ``x``; a single element may stay on the CPU.
            x: Batch, shape ``(N, ...)``.

        Returns:
            Same shape, dtype and device as ``x``.

        Raises:
            TypeError: ``g`` is not a tensor of ``element_dtype``.
            ValueError: ``g`` has the wrong shape or device or is outside the group, or the group cannot act
                on batches of this shape.
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

    def sample_non_identity(self, n: int, k: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws ``k`` elements for each of ``n`` samples, leaving the identity out.

        Args:
            n: Number of samples.
            k: Elements per sample. A finite group draws them without replacement.
            rng: Source of randomness; None uses torch's global one.

        Returns:
            Shape ``(k, n, *element_shape)``, on the device of ``rng`` (None: the CPU).

        Raises:
            ValueError: A finite group has fewer than ``k`` non-identity elements.
        """
        return self.sample(n * k, rng).view(n, k, *self.element_shape).transpose(0, 1)

    def _check_elements(self, *elements: Tensor) -> None:
        """Raises unless each argument is a stack of elements."""
        for g in elements:
            self._check_form(g)
            self._check_values(g)

    def _check_action(self, g: Tensor, x: Tensor) -> None:
        """Raises unless ``x`` is a batch and ``g`` one element or one for each of its rows."""
        self._check_form(g)
        if not isinstance(x, Tensor) or x.ndim == 0:
            came = "a tensor of shape ()" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{self!r} acts on batches, tensors of shape (N, ...): got {came}.")
        one = tuple(self.element_shape)
        if tuple(g.shape) not in (one, (len(x), *one)):
            raise ValueError(
                f"{self!r} acts by one element, shape {one}, or by one per sample, shape {(len(x), *one)}: "
                f"got elements of shape {tuple(g.shape)} for inputs of shape {tuple(x.shape)}. Draw as many with "
                "sample(len(x)), or act with one at a time."
            )
        if g.device != x.device and (tuple(g.shape) != one or g.device.type != "cpu"):
            raise ValueError(
                f"Elements live where the inputs do, on {x.device}: got elements on {g.device}. Write g.to(x.device)."
            )
        self._check_values(g)

    def _check_form(self, g: Tensor) -> None:
        """Raises unless ``g`` is a tensor with the dtype and the trailing shape of elements."""
        if not isinstance(g, Tensor) or g.dtype != self.element_dtype:
            came = f"a tensor of {g.dtype}" if isinstance(g, Tensor) else f"{type(g).__name__}"
            raise TypeError(
                f"Elements of {self!r} are tensors of {self.element_dtype}: got {came}. "
                f"Write torch.tensor(..., dtype={self.element_dtype})."
            )
        one = tuple(self.element_shape)
        if tuple(g.shape[g.ndim - len(one) :]) != one:
            raise ValueError(
                f"Elements of {self!r} have shape {one}, stacks of them (..., *{one}): got {tuple(g.shape)}."
            )

    def _check_values(self, g: Tensor) -> None:  # noqa: B027  # nothing to check unless a subclass knows of something
        """Raises unless the values of ``g``, whose form is right, are those of elements."""


class FiniteGroup(Group):
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

    order: int

    @property
    def identity(self) -> Tensor:
        """The index 0."""
        return torch.zeros((), dtype=torch.int64)

    def elements(self) -> Tensor:
        """All elements, identity first, shape ``(order,)``, int64, on the CPU."""
        return torch.arange(self.order)

    def non_identity_elements(self) -> Tensor:
        """All elements but the identity, shape ``(order - 1,)``, int64, on the CPU."""
        return torch.arange(1, self.order)

    def generators(self) -> Tensor:
        """Elements whose products are the whole group, shape ``(n,)``, int64; all but the identity if unknown."""
        return self.non_identity_elements()

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws ``n`` indices uniformly, the identity included; see ``Group.sample``."""
        return torch.randint(self.order, (n,), generator=rng, device=_device_of(rng))

    def sample_non_identity(self, n: int, k: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws ``k`` different non-identity elements for each of ``n`` samples; see ``Group``."""
        if not 0 < k < self.order:
            raise ValueError(
                f"{self!r} has {self.order - 1} non-identity elements: cannot draw {k} different ones per sample. "
                "Use samples=None for all of them."
            )
        keys = torch.rand(n, self.order - 1, generator=rng, device=_device_of(rng))
        return keys.topk(k, dim=1).indices.T + 1

    def cayley_table(self) -> Tensor:
        """The multiplication table: entry ``[g, h]`` is ``gh``, shape ``(order, order)``, int64."""
        g = self.elements()
        return self.compose(g[:, None], g[None, :])

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Applies the element of a Python index to a whole batch.

        What ``act`` calls for a single element, after its checks. A subclass that defines it need not define
        ``act``.

        Args:
            index: Which element, ``0 <= index < order``.
            x: Batch, shape ``(N, ...)``.

        Returns:
            Same shape, dtype and device as ``x``.
        """
        return self.act(torch.tensor(index), x)

    def transform_each(self, g: Tensor, x: Tensor) -> Tensor:
        """Applies one element to each sample; what ``act`` calls for a stack of elements, after its checks.

        Derived from ``transform``, one call per element that occurs. A subclass overrides it where one
        operation can do all elements at once (a gather, a product with signs).

        Args:
            g: Indices, shape ``(N,)``, on the device of ``x``.
            x: Batch, shape ``(N, ...)``.

        Returns:
            Same shape, dtype and device as ``x``.
        """
        if torch.compiler.is_compiling():  # a compiler cannot count rows: it takes each sample's image out of its orbit
            return self.orbit(x)[g, torch.arange(len(x), device=x.device)]
        rows = [(g == index).nonzero().squeeze(1) for index in range(self.order)]
        parts = [self.transform(i, x[r]) for i, r in enumerate(rows) if len(r)]
        return torch.cat(parts)[torch.cat(rows).argsort()] if parts else x

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """Applies one element to a whole batch, or one element to each sample; see ``Group.act``."""
        if type(self).transform is FiniteGroup.transform:
            raise TypeError(f"{type(self).__name__} must define how it acts: transform(index, x) or act(g, x).")
        self._check_action(g, x)
        if g.ndim == 0 and not torch.compiler.is_compiling():
            return self.transform(int(g), x)
        # A compiler cannot read the index out of a tensor: it gets the same element for each sample.
        return self.transform_each(g.to(x.device).expand(len(x)), x)

    def orbit(self, x: Tensor, *, identity: bool = True) -> Tensor:
        """The batch under every element.

        Args:
            x: Batch, shape ``(N, ...)``.
            identity: Whether to include the identity, which comes first.

        Returns:
            Shape ``(order, N, ...)``, or ``(order - 1, N, ...)`` without the identity.

        Raises:
            ValueError: The group cannot act on batches of this shape.

        Example:
            >>> from invreg import Flip
            >>> Flip(-1).orbit(torch.tensor([[1.0, 2.0]]))
            tensor([[[1., 2.]],
            <BLANKLINE>
                    [[2., 1.]]])
        """
        start = 0 if identity else 1
        if start == self.order:
            return x[None, :][:0]
        return torch.stack([self.transform(index, x) for index in range(start, self.order)])

    def __mul__(self, other: FiniteGroup) -> DirectProduct:
        """The direct product, where the two actions commute; see ``DirectProduct``."""
        from invreg.groups.product import DirectProduct

        return DirectProduct(self, other) if isinstance(other, FiniteGroup) else NotImplemented

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

    def _check_values(self, g: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        outside = (g < 0) | (g >= self.order)
        if bool(outside.any()):
            where = f" at position {tuple(outside.nonzero()[0].tolist())}" if g.ndim else ""
            raise ValueError(
                f"{self!r} has the elements 0 to {self.order - 1}: got {int(g[outside].flatten()[0])}{where}. "
                f"elements() lists them."
            )


def _device_of(rng: torch.Generator | None) -> torch.device | None:
    return None if rng is None else rng.device
