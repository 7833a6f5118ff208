"""Are two audits of one model, and under the same settings?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from invreg.functional import Model


def in_words(setting: object) -> str:
    """A setting as text that is the same in every process: without addresses in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(setting))


def name_of(function: object) -> str:
    """What a function, or the class of a callable, is called."""
    return str(getattr(function, "__name__", type(function).__name__))


def fingerprint(model: Model) -> str:
    """What tells a module's weights from others, or else its name."""
    if not isinstance(model, nn.Module):
        return name_of(model)
    named = (*model.named_parameters(), *model.named_buffers())
    return f"{name_of(model)} {_digest(dict(named))}"


def fingerprint_of_data(inputs: Mapping[object, Tensor], labels: Tensor | None) -> str:
    """What tells samples from others."""
    return _digest({str(key): tensor for key, tensor in inputs.items()} | ({} if labels is None else {"label": labels}))


def check_same(settings: Mapping[str, str], others: Mapping[str, str], whose: str) -> None:
    """Raises unless another audit has the same settings."""
    for name, value in settings.items():
        if others.get(name) != value:
            raise ValueError(
                f"{whose} must have the same settings, model and data: its {name} is {others.get(name)}, this one's "
                f"{value}. Use the same, or another checkpoint."
            )


def _digest(named: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in named.items():
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
