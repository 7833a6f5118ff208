"""Which tensors does a batch hold?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Batch = Any
"""A tensor ``(N, ...)``, or a mapping, tuple or list of such tensors with one ``N``."""


def map_tensors(function: Callable[..., Tensor], *batches: Batch) -> Batch:
    """Applies a function to the tensors of batches that are built alike; a mapping becomes a dict."""
    if isinstance(batches[0], Tensor):
        return function(*batches)
    parts = [dict(tensors(batch)) for batch in batches]
    return rebuilt(batches[0], {key: function(*(part[key] for part in parts)) for key in parts[0]})


def rebuilt(batch: Batch, entries: dict[Any, Any]) -> Batch:
    """The entries, by key or position, put together as those of a mapping, tuple or list are."""
    if isinstance(batch, Mapping):
        return entries
    values = entries.values()
    return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)  # a named tuple takes them apart


def tensors(batch: Batch) -> Iterator[tuple[Any, Tensor]]:
    """The tensors of a batch, each with its key or position; the key None for a batch that is one tensor."""
    if isinstance(batch, Tensor):
        yield None, batch
    else:
        yield from batch.items() if isinstance(batch, Mapping) else enumerate(batch)


def first_tensor(batch: Batch) -> Tensor:
    """One of the tensors, to know the number of rows and the device by."""
    return next(tensor for _, tensor in tensors(batch))


def shapes(batch: Batch) -> Any:
    """The shape of a batch, or of each of its tensors by key or position, for a message."""
    found = {key: tuple(tensor.shape) for key, tensor in tensors(batch)}
    return found.get(None, found)


def stack(batches: list[Batch]) -> Batch:
    """Stacks batches that are built alike along a new first axis; one alone is not copied."""
    if len(batches) == 1:
        return map_tensors(lambda entry: entry[None], batches[0])
    return map_tensors(lambda *entries: torch.stack(entries), *batches)
