"""Are two audits of one model, and under the same settings?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import partial
from inspect import getclosurevars, isfunction, ismethod

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
    """What tells a model's weights from others: those of the module, or of all that a callable refers to."""
    named = {
        f"{number}.{name}": tensor
        for number, module in enumerate(_modules(model))
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    return f"{name_of(model)} {_digest(named)}"


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


def _modules(model: object) -> Iterator[nn.Module]:
    """The modules that a callable is, holds or closes over."""
    if isinstance(model, nn.Module):
        yield model
    elif isinstance(model, partial):
        for part in (model.func, *model.args, *model.keywords.values()):
            yield from _modules(part)
    elif ismethod(model):
        yield from _modules(model.__self__)
    elif isfunction(model):
        variables = getclosurevars(model)
        found = (*variables.nonlocals.values(), *variables.globals.values())
        yield from (value for value in found if isinstance(value, nn.Module))
    else:
        yield from (value for value in getattr(model, "__dict__", {}).values() if isinstance(value, nn.Module))


def _digest(named: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in named.items():
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
