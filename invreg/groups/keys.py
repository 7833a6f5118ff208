"""How does a group act on inputs of several tensors?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from invreg.groups.batch import Batch, first_tensor, rebuilt, tensors
from invreg.groups.contract import FiniteGroup, Group
from invreg.groups.same_elements import SameElements, SameFiniteElements, compose_alike


@dataclass(frozen=True, init=False, repr=False)
class OnKeys(SameElements):
    """One group that acts on several tensors of an input at once: an image and its mask, a graph's nodes and edges.

    Inputs are mappings, tuples or lists of tensors with one batch axis; those not named stay as they are. An element
    acts on each tensor as that tensor's own group does, so that all of these must have the same elements and compose
    them alike: ``PlanarRotation()`` for images goes with ``PlanarRotation("nearest")`` for their masks. A
    ``FiniteGroup`` if they are. Losses and audits call the model with the whole input as one argument
    (``lambda batch: model(**batch)`` wraps others); audits make no saliency maps for it. A loader yields
    ``((image, mask), labels)`` or, without labels, ``((image, mask),)``; ``input_key=`` picks keys of flat mappings.

    Args:
        groups: The group of each tensor, by its key or, for tuples and lists, its position.

    Raises:
        TypeError: ``groups`` is no mapping from keys to groups.
        ValueError: ``groups`` is empty, or its groups have other elements than one another. When it acts: the input
            lacks a key.

    Example:
        >>> import torch
        >>> from invreg import Flip
        >>> group = OnKeys({"image": Flip(-1), "mask": Flip(-1)})
        >>> batch = {"image": torch.tensor([[1.0, 2.0]]), "mask": torch.tensor([[0, 1]]), "id": torch.tensor([7])}
        >>> group.act(torch.tensor(1), batch)
        {'image': tensor([[2., 1.]]), 'mask': tensor([[1, 0]]), 'id': tensor([7])}
    """

    _items: tuple[tuple[Any, Group], ...]

    def __init__(self, groups: Mapping[Any, Group]) -> None:
        if not isinstance(groups, Mapping) or not all(isinstance(group, Group) for group in groups.values()):
            raise TypeError(f'OnKeys takes a mapping from keys to groups, e.g. {{"image": Flip()}}: got {groups!r}.')
        if not groups:
            raise ValueError("OnKeys takes at least one key: got none.")
        if any(isinstance(group, OnKeys) for group in groups.values()):
            raise TypeError("OnKeys takes groups that act on one tensor each: got another OnKeys.")
        object.__setattr__(self, "_items", tuple(groups.items()))
        for key, group in groups.items():
            if not compose_alike(self.lender, group):
                raise ValueError(
                    f"OnKeys takes groups with the same elements, composed alike: {self.lender!r} under "
                    f"{self._items[0][0]!r} has others than {group!r} under {key!r}."
                )
        if isinstance(self.lender, FiniteGroup) and type(self) is OnKeys:
            object.__setattr__(self, "__class__", _FiniteOnKeys)

    def __repr__(self) -> str:
        return f"OnKeys({self.groups!r})"

    @property
    def groups(self) -> dict[Any, Group]:
        """The group of each tensor."""
        return dict(self._items)

    @property
    def lender(self) -> Group:
        """The first of the groups."""
        return self._items[0][1]

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether all actions are exact."""
        return all(group.exact for _, group in self._items)

    def act(self, g: Tensor, x: Batch) -> Batch:
        """Applies one element, or one for each sample, to each tensor that has a group; see ``Transformations.act``.

        Args:
            g: One element, shape ``element_shape``, or one per sample, shape ``(N, *element_shape)``.
            x: A mapping, tuple or list of tensors ``(N, ...)``.

        Returns:
            The same with the tensors transformed; a mapping becomes a dict.

        Raises:
            TypeError: ``x`` is a tensor, or holds something else than tensors.
            ValueError: ``x`` lacks a key, its tensors have different numbers of rows, or a group cannot act on its own.
        """
        self._check_action(g, x)
        return self._on_each(x, lambda group, entry: group.act(g, entry))

    def act_on_map(self, g: Tensor, m: Batch) -> Batch:
        """Lets each group act on its map; see ``Group.act_on_map``."""
        self._check_action(g, m)
        return self._on_each(m, lambda group, entry: group.act_on_map(g, entry))

    def _on_each(self, x: Batch, action: Any, otherwise: Any = lambda entry: entry) -> Batch:
        """Applies ``action(group, tensor)`` where there is a group, and ``otherwise(tensor)`` elsewhere."""
        groups = self.groups
        return rebuilt(x, {key: action(groups[key], e) if key in groups else otherwise(e) for key, e in tensors(x)})

    def _check_batch(self, x: Batch) -> Tensor:
        if not isinstance(x, (Mapping, tuple, list)):
            raise TypeError(
                f"{self!r} acts on mappings, tuples and lists of tensors: got {type(x).__name__}. A loader yields them "
                "as (inputs, labels) or (inputs,)."
            )
        entries = dict(tensors(x))
        if missing := [key for key in self.groups if key not in entries]:
            raise ValueError(
                f"{self!r} acts on the keys {list(self.groups)}: the input has {list(entries)}, no {missing[0]!r}."
            )
        some = first_tensor(x)
        for key, entry in entries.items():
            if not isinstance(entry, Tensor):
                raise TypeError(f"Inputs must hold tensors and nothing else: got {type(entry).__name__} at {key!r}.")
            if entry.ndim == 0 or len(entry) != len(some):
                raise ValueError(
                    f"Inputs must hold tensors (N, ...) with one N: got shape {tuple(entry.shape)} at {key!r} beside "
                    f"{tuple(some.shape)}."
                )
        return some


class _FiniteOnKeys(SameFiniteElements, OnKeys):
    """The same of finite groups."""

    def transform(self, index: int, x: Batch) -> Batch:
        """Applies one element to each tensor that has a group."""
        return self._on_each(x, lambda group, entry: group.transform(index, entry))

    def transform_each(self, g: Tensor, x: Batch) -> Batch:
        """Applies one element to each sample of each tensor that has a group."""
        return self._on_each(x, lambda group, entry: group.transform_each(g, entry))

    def orbit(self, x: Batch, *, identity: bool = True) -> Batch:
        """The input under every element, its tensors of shape ``(order, N, ...)``; see ``FiniteGroup.orbit``."""
        self._check_batch(x)
        elements = self.order if identity else self.order - 1
        return self._on_each(
            x,
            lambda group, entry: group.orbit(entry, identity=identity),
            lambda entry: entry.expand(elements, *entry.shape),
        )
