"""How is a model left as it was found?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def preserved(model: Callable[..., Any], *, training: bool) -> Iterator[None]:
    """Puts a module into training or evaluation mode; afterwards all that a forward or a map may change is as before.

    That is its modes, its buffers, its parameters' gradients and whether they want any, and torch's random numbers;
    also when the body raises. A callable that is no module is left alone, but the random numbers are put back.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    buffers = [(module, dict(module._buffers)) for module in modules]
    values = {
        id(buffer): (buffer, buffer.detach().clone())
        for _, named in buffers
        for buffer in named.values()
        if buffer is not None and not is_lazy(buffer) and not buffer.is_inference()
    }
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
                for before, value in values.values():
                    if not torch.equal(before, value):  # a copy would spoil a backward that the caller has still to do
                        before.copy_(value)
                for module, named in buffers:  # of which some may have been replaced or added
                    for name in [name for name in module._buffers if name not in named]:
                        delattr(module, name)
                    module._buffers.update(named)
            torch.clear_autocast_cache()  # which may hold weights that were cast without gradients
