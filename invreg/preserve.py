"""How is a model left as it was found?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def preserved(model: Callable[..., Any], *, training: bool) -> Iterator[None]:
    """Puts a module into training or evaluation mode; afterwards all that a forward or a map may change is as before.

    That is its modes, its buffers, its parameters' gradients and whether they want any, and torch's random numbers;
    also when the body raises. A callable that is no module is left alone, but the random numbers are put back.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    parameters = [
        (parameter, parameter.requires_grad, parameter.grad)
        for module in modules
        for parameter in module.parameters(recurse=False)
    ]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            for module in modules:
                module.training = training
            for parameter, _, _ in parameters:
                parameter.grad = None  # so that a backward in the body adds to no gradient of the caller
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            for parameter, requires_grad, gradient in parameters:
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient
            with torch.no_grad():
                for module, name, buffer, value in buffers:  # which may have been changed or replaced
                    setattr(module, name, buffer if buffer is None or value is None else buffer.copy_(value))
            torch.clear_autocast_cache()  # which may hold weights that were cast without gradients
