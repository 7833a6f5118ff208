"""What can be done to a batch, one transformation at a time?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import floor, inf, log10

import torch
from torch import Tensor

from invreg.groups.batch import Batch, stack, tensors

_LONGEST_NAME = 32
"""Where lists of numbers are cut short, in characters."""


class Transformations(ABC):
    """Transformations of batches, each named by an element: what an audit and a loss run through.

    A ``Group`` is one whose elements compose and can be undone; a ``TransformationSet`` need not be. An element is a
    tensor of ``element_shape``; a stack of elements has leading dimensions. So sampling and acting are batched, and
    no Python object is made per element.

    Attributes:
        element_shape: Shape of one element; ``()`` for an index.
        element_dtype: Dtype of elements; int64 for indices.
        exact: True where the action only moves or negates entries, False where it does more.
        order: Number of elements, the identity included; infinite unless a subclass says.
    """

    element_shape: tuple[int, ...] = ()
    element_dtype: torch.dtype = torch.int64
    exact: bool
    order: float = inf

    @abstractmethod
    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """Applies one element to a whole batch, or one element to each sample.

        The batch axis never moves and ``x`` is never written to. Differentiable in ``x``. For a group, a left action:
        ``act(compose(g, h), x) == act(g, act(h, x))``.

        Args:
            g: One element, shape ``element_shape``, or one per sample, shape ``(N, *element_shape)``. A stack
                lives on the device of ``x``; a single element may stay on the CPU.
            x: Batch, shape ``(N, ...)``.

        Returns:
            Same shape, dtype and device as ``x``.

        Raises:
            TypeError: ``g`` is not a tensor of ``element_dtype``.
            ValueError: ``g`` has the wrong shape or device or is no element, or batches of this shape cannot be
                acted on.
        """

    @abstractmethod
    def realign(self, g: Tensor, m: Tensor) -> Tensor:
        """Moves maps of the transformed inputs back to where they lie in the inputs.

        Args:
            g: The elements that the inputs were transformed by, as in ``act``.
            m: Maps made at the transformed inputs, such as saliency maps, shape ``(N, ...)``.

        Returns:
            Same shape, dtype and device as ``m``.

        Raises:
            ValueError: It is not known how the elements move maps.
        """

    @abstractmethod
    def sample_non_identity(self, n: int, k: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws ``k`` elements for each of ``n`` samples, leaving the identity out.

        Args:
            n: Number of samples.
            k: Elements per sample. Where they can be told apart, they are drawn without replacement.
            rng: Source of randomness; None uses torch's global one.

        Returns:
            Shape ``(k, n, *element_shape)``, on the device of ``rng`` (None: the CPU).

        Raises:
            ValueError: There are fewer than ``k`` non-identity elements.
        """

    def describe(self, g: Tensor) -> str:
        """One element in words, for tables and plots.

        Different elements have different names, as far as they differ in the digits shown; long permutations and lists
        of numbers are cut short with an ellipsis, and may then share a name. Angles count counter-clockwise. What a
        comma separates happens in this order; of the parts of a product, separated by dots, the last acts first, and
        those that change nothing are left out. Elements of groups of one's own are called by their index or their
        numbers, unless a subclass says otherwise.

        Args:
            g: One element, shape ``element_shape``.

        Returns:
            A few words, on one line.

        Raises:
            TypeError: ``g`` is not a tensor of ``element_dtype``.
            ValueError: ``g`` is a stack of elements, or no element.

        Example:
            >>> from invreg import CyclicRotation, Dihedral, Flip, SignFlip
            >>> CyclicRotation(4).describe(torch.tensor(1))
            '90°'
            >>> Dihedral(4).describe(torch.tensor(5))
            'mirrored, 90°'
            >>> [(SignFlip() * Flip()).describe(g) for g in torch.arange(4)]
            ['identity', 'mirrored', 'negated', 'negated · mirrored']
        """
        self._check_form(g)
        one = tuple(self.element_shape)
        if tuple(g.shape) != one:
            raise ValueError(
                f"{self!r} describes one element, shape {one}: got a stack of shape {tuple(g.shape)}. "
                "Describe them one by one."
            )
        self._check_values(g)
        return self._name(g.cpu())

    def _name(self, g: Tensor) -> str:
        """What ``describe`` returns for an element, on the CPU, after its checks."""
        return shortened(str((g.double().round(decimals=3) + 0.0 if g.is_floating_point() else g).tolist()))

    def _check_elements(self, *elements: Tensor) -> None:
        """Raises unless each argument is a stack of elements."""
        for g in elements:
            self._check_form(g)
            self._check_values(g)

    def _check_action(self, g: Tensor, x: Tensor) -> None:
        """Raises unless ``x`` is a batch and ``g`` one element or one for each of its rows."""
        self._check_fit(g, x)
        self._check_values(g)

    def _check_fit(self, g: Tensor, x: Tensor) -> None:
        """The same without looking at the values of ``g``."""
        self._check_form(g)
        x = self._check_batch(x)
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

    def _check_batch(self, x: Batch) -> Tensor:
        """Raises unless ``x`` is a batch; returns it, or one of the tensors that it holds."""
        if not isinstance(x, Tensor) or x.ndim == 0:
            came = "a tensor of shape ()" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{self!r} acts on batches, tensors of shape (N, ...): got {came}.")
        return x

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


class IndexedTransformations(Transformations):
    """Finitely many transformations, named by the indices ``0 ... order - 1``; 0 changes nothing.

    A subclass sets ``order`` and ``exact`` and defines ``realign`` and how an element acts: either
    ``transform(index, x)``, one element at a time by its Python index (the rest is derived), or ``act`` itself.

    Attributes:
        order: Number of elements, the identity included.
    """

    order: int

    def elements(self) -> Tensor:
        """All elements, identity first, shape ``(order,)``, int64, on the CPU."""
        return torch.arange(self.order)

    def non_identity_elements(self) -> Tensor:
        """All elements but the identity, shape ``(order - 1,)``, int64, on the CPU."""
        return torch.arange(1, self.order)

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws ``n`` indices uniformly, the identity included; see ``Group.sample``."""
        return torch.randint(self.order, (n,), generator=rng, device=device_of(rng))

    def sample_non_identity(self, n: int, k: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws ``k`` different non-identity elements for each of ``n`` samples; see ``Transformations``."""
        if not 0 < k < self.order:
            raise ValueError(
                f"{self!r} has {self.order - 1} non-identity elements: cannot draw {k} different ones per sample. "
                "Use samples=None for all of them."
            )
        return draw_non_identity(self.order, n, k, rng)

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
        """Applies one element to a whole batch, or one element to each sample; see ``Transformations.act``."""
        if type(self).transform is IndexedTransformations.transform:
            raise TypeError(f"{type(self).__name__} must define how it acts: transform(index, x) or act(g, x).")
        self._check_action(g, x)
        if g.ndim == 0 and not torch.compiler.is_compiling():
            return self.transform(int(g), x)
        # A compiler cannot read the index out of a tensor: it gets the same element for each sample.
        some = self._check_batch(x)
        return self.transform_each(g.to(some.device).expand(len(some)), x)

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
        images: Tensor = stack([checked(self, self.transform(i, x), x) for i in range(start, self.order)])
        return images

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


def checked(group: Transformations, y: Batch, x: Batch, part: str = "") -> Batch:
    """Returns ``y``, what a part of a group made of ``x``, if its tensors kept their shape, dtype and device."""
    after = dict(tensors(y)) if isinstance(y, (Tensor, Mapping, tuple, list)) else {}
    for key, given in tensors(x):
        found = after.get(key, y)
        if not isinstance(found, Tensor) or _differ(found, given):
            raise ValueError(
                f"{group!r}{part} must keep shape, dtype and device, {_form(given)}: it returned {_form(found)}."
            )
    return y


def _differ(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device)


def _form(x: object) -> str:
    return f"{tuple(x.shape)}, {x.dtype} on {x.device}" if isinstance(x, Tensor) else type(x).__name__


def draw_non_identity(order: int, n: int, k: int, rng: torch.Generator | None) -> Tensor:
    """Draws ``k`` different indices from 1 to ``order - 1`` for each of ``n`` samples, shape ``(k, n)``."""
    keys = uniform(n, order - 1, rng, dtype=torch.float32)
    return keys.topk(k, dim=1).indices.T + 1


def shortened(numbers: str) -> str:
    """A list of numbers between spaces, cut before one of them if it is long."""
    return numbers if len(numbers) <= _LONGEST_NAME else f"{numbers[: _LONGEST_NAME - 1].rpartition(' ')[0]} …"


def in_words(order: float) -> str:
    """A number of elements, which may be too large to print."""
    if order == inf:
        return "infinitely many"
    return str(order) if order < 10**20 else f"more than 10^{floor(log10(order))}"


def uniform(n: int, numbers: int, rng: torch.Generator | None, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draws from 0 to 1, shape ``(n, numbers)``; also compiled for any ``n``, as ``torch.rand`` is not."""
    return torch.empty(n, numbers, dtype=dtype, device=device_of(rng)).uniform_(generator=rng)


def device_of(rng: torch.Generator | None) -> torch.device | None:
    """Where a generator draws; None for the CPU."""
    return None if rng is None else rng.device
