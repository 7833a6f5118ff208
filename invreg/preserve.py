"""How is a model left as it was found?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def preserved(model: Callable[..., Any], *, training: bool) -> Iterator[None]:
    """Puts a module into training or evaluation mode; afterwards its modes, its buffers and the RNG are as before.

    Also when the body raises. A callable that is no module is left alone, but the RNG is put back all the same.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            for module in modules:
                module.training = training
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    setattr(module, name, buffer.copy_(value))  # a forward may have changed it or put another there
            torch.clear_autocast_cache()  # which may hold weights that were cast without gradients
