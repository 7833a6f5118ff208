"""What does a data loader yield?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from invreg.audit.tolerant import Unreadable, tolerant
from invreg.functional import checked_inputs
from invreg.groups.batch import Batch, first_tensor, map_tensors


class Loaded(NamedTuple):
    """A batch, checked and on the device.

    Args:
        inputs: The samples; None if none of the batch could be read.
        labels: Their classes; None where there are none.
        unreadable: What could not be read of the batch.
    """

    inputs: Batch | None
    labels: Tensor | None
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def rows(self) -> int:
        """How many samples the batch was to have; 0 where nobody knows."""
        return (0 if self.inputs is None else len(first_tensor(self.inputs))) + len(self._failed)

    @property
    def read(self) -> Tensor:
        """The places in the batch of the samples that could be read, int64."""
        failed = self._failed
        return torch.tensor([row for row in range(self.rows) if row not in failed], dtype=torch.int64)

    @property
    def _failed(self) -> set[int]:
        return {row for one in self.unreadable for row in one.rows}


def check_loader(loader: Iterable[Any]) -> None:
    """Raises unless it can be thought to yield batches."""
    if isinstance(loader, Tensor):
        raise TypeError("loader must yield batches: got a tensor. Write [x] or [(x, y)] for a single batch.")
    map_style = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
    if map_style or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise TypeError(
            f"loader must yield batches: got {type(loader).__name__}. A data set yields single samples: wrap it in a "
            "torch.utils.data.DataLoader."
        )


def loaded(
    loader: Iterable[Any],
    *,
    input_key: str | Sequence[str],
    label_key: str,
    device: torch.device | str | None,
    progress: bool,
    description: str = "audit",
    skip: bool = False,
) -> Iterator[Loaded]:
    """Yields each batch, checked and on the device; with ``skip``, also what could not be read.

    Raises:
        TypeError: The loader or one of its batches is none of the forms that ``measure_invariance`` lists.
        ValueError: The loader yields nothing, an empty batch, or a mapping without ``input_key``.
    """
    from tqdm import tqdm

    check_loader(loader)
    stream = tolerant(loader) if skip else ((batch, ()) for batch in loader)
    empty = True
    off = None if progress else True  # None: on a terminal only
    total = _length(loader)
    for batch, unreadable in tqdm(stream, desc=description, unit="batch", total=total, leave=False, disable=off):
        empty = False
        if batch is None and unreadable:
            yield Loaded(None, None, unreadable)
            continue
        inputs, labels = _split(batch, input_key, label_key)
        checked_inputs(inputs)
        if labels is not None and not isinstance(labels, Tensor):
            raise TypeError(
                f"Labels must be a tensor, one class index per input: got {type(labels).__name__}. "
                "Use torch.tensor(y), or for a data set a torch.utils.data.DataLoader."
            )
        if labels is not None and (labels.ndim == 0 or len(labels) != len(first_tensor(inputs))):
            raise ValueError(
                f"Labels must be one per input: got shape {tuple(labels.shape)} for inputs "
                f"{tuple(first_tensor(inputs).shape)}."
            )
        inputs = map_tensors(lambda t: t.to(device), inputs)
        yield Loaded(inputs, None if labels is None else labels.to(device), unreadable)
    if empty:
        raise ValueError("loader must yield at least one batch: it yielded none. Is it a generator already used up?")


def dealt(loader: Iterable[Any], world: int) -> int | None:
    """How many samples the data set has of which each of several processes was dealt a part, if that is known.

    torch's ``DistributedSampler`` deals some samples twice, so that all processes have equally many.
    """
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    if world > 1 and isinstance(loader, DataLoader) and any(isinstance(one, DistributedSampler) for one in samplers):
        return len(loader.dataset)  # type: ignore[arg-type]  # its sampler asked it too
    return None


def described(loader: Iterable[Any]) -> str:
    """A loader in words: what it is, and of what."""
    dataset = getattr(loader, "dataset", None)
    name = type(loader).__name__
    return name if dataset is None else f"{name} of {type(dataset).__name__}"


def _length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader)  # type: ignore[arg-type]  # or else it says so
    except (TypeError, NotImplementedError):  # either of which says that there is no length
        return None


def _split(batch: Any, input_key: str | Sequence[str], label_key: str) -> tuple[Any, Any]:
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        keys = [input_key] if isinstance(input_key, str) else list(input_key)
        if missing := [key for key in keys if key not in batch]:
            raise ValueError(f"No inputs under {missing[0]!r} in a batch with the keys {list(batch)}: set input_key=.")
        inputs = batch[input_key] if isinstance(input_key, str) else {key: batch[key] for key in keys}
        return inputs, batch.get(label_key)
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        return batch[0], batch[1] if len(batch) == 2 else None
    came = f"a {type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise TypeError(f"loader must yield inputs, (inputs, labels) or a mapping: got {came}.")
