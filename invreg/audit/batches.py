"""What does a data loader yield?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from invreg.functional import checked_inputs
from invreg.groups.batch import Batch, first_tensor, map_tensors


def batches(
    loader: Iterable[Any],
    *,
    input_key: str | Sequence[str],
    label_key: str,
    device: torch.device | str | None,
    progress: bool,
) -> Iterator[tuple[Batch, Tensor | None]]:
    """Yields the inputs and labels (None where there are none) of each batch, checked and on the device.

    Raises:
        TypeError: The loader or one of its batches is none of the forms that ``measure_invariance`` lists.
        ValueError: The loader yields nothing, an empty batch, or a mapping without ``input_key``.
    """
    from tqdm import tqdm

    if isinstance(loader, Tensor):
        raise TypeError("loader must yield batches: got a tensor. Write [x] or [(x, y)] for a single batch.")
    map_style = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
    if map_style or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise TypeError(
            f"loader must yield batches: got {type(loader).__name__}. A data set yields single samples: wrap it in a "
            "torch.utils.data.DataLoader."
        )
    empty = True
    for batch in tqdm(loader, desc="audit", unit="batch", leave=False, disable=None if progress else True):
        empty = False
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
        yield map_tensors(lambda t: t.to(device), inputs), None if labels is None else labels.to(device)
    if empty:
        raise ValueError("loader must yield at least one batch: it yielded none. Is it a generator already used up?")


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
