"""Which model does a word name?"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invreg.cli.names import guarded, is_name, named_object

_NESTED = ("state_dict", "model_state_dict", "model")
"""Under which keys a checkpoint may hold the weights."""

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What data parallelism, torch.compile and training frameworks write before the name of each weight."""

_MOST_NAMED = 3
"""How many weights that do not fit are listed."""


def load_model(word: str, *, weights: str | None, device: str | None) -> Callable[[Tensor], Tensor]:
    """The model that is written so, on the device.

    Args:
        word: ``package.module:name`` of a module, or of what makes a model when called; or a file written by
            ``torch.export.save``.
        weights: A file of weights to load into it.
        device: Where to move it; None leaves it where it is.

    Raises:
        ValueError: There is no such model, or the weights do not fit; what failed is the cause.
    """
    model = _exported(word, weights) if word.endswith(".pt2") or not is_name(word) else _made(word, weights)
    if device is not None and isinstance(model, nn.Module):
        guarded(f"the model cannot be moved to {device!r}", partial(model.to, device))
    return model


def _made(word: str, weights: str | None) -> Callable[[Tensor], Tensor]:
    model = named_object(word)
    if not callable(model):
        raise ValueError(f"{word!r} must be a model, or make one when called: got {type(model).__name__}.")
    if not isinstance(model, nn.Module):
        model = guarded(f"{word}() failed, and a model is made without arguments", model)
    if not callable(model):
        raise ValueError(f"{word}() must return a model: got {type(model).__name__}.")
    if weights is None:
        return model  # type: ignore[no-any-return]  # any callable is a model
    if not isinstance(model, nn.Module):
        raise ValueError(f"weights are loaded into an nn.Module: {word}() returned {type(model).__name__}.")
    state = _unpacked(_read_weights(weights), model.state_dict(), weights)
    _check_fit(state, model.state_dict(), weights)
    guarded(f"{weights} does not fit the model", lambda: model.load_state_dict(state))
    return model


def _read_weights(file: str) -> Any:
    if not Path(file).is_file():
        raise ValueError(f"{file} is no file: give --weights a file that torch.save or safetensors wrote.")
    if file.endswith(".safetensors"):
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ValueError(f"to read {file}, safetensors is needed: pip install safetensors.") from error
        return guarded(f"{file} cannot be read", partial(load_file, file))
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is damaged, or holds more than weights, and is not loaded since that could run any code: write it "
            "by torch.save(model.state_dict(), file)."
        ) from error
    except Exception as error:
        raise ValueError(f"{file} cannot be read as weights: {error}") from error


def _unpacked(state: Any, wanted: Mapping[str, Tensor], file: str) -> Mapping[str, Tensor]:
    """The weights by their names in the model, wherever in a checkpoint they are."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} must hold a dictionary of weights: got {type(state).__name__}.")
    for key in _NESTED:
        if isinstance(state.get(key), Mapping):
            return _unpacked(state[key], wanted, file)
    named = all(isinstance(name, str) for name in state)
    if not named or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} holds no weights by name, neither at its top nor under {', '.join(_NESTED)}.")
    weights = dict(state)
    for _ in _PREFIXES:  # which may come one before the other
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in weights) and not all(name.startswith(prefix) for name in wanted):
                weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _check_fit(state: Mapping[str, Any], wanted: Mapping[str, Any], file: str) -> None:
    """Raises unless the names and the shapes are those of the model."""
    others = {
        "it lacks": [name for name in wanted if name not in state],
        "the model has no": [name for name in state if name not in wanted],
        "of other shapes are": [
            f"{name} {tuple(value.shape)}, not {tuple(wanted[name].shape)}"
            for name, value in state.items()
            if isinstance(value, Tensor) and isinstance(wanted.get(name), Tensor) and value.shape != wanted[name].shape
        ],
    }
    wrong = [f"{what} {_listed(names)}" for what, names in others.items() if names]
    if wrong:
        raise ValueError(f"{file} does not fit the model: {'; '.join(wrong)}.")


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _exported(file: str, weights: str | None) -> nn.Module:
    path = Path(file)
    if not path.is_file():
        raise ValueError(
            f"{file!r} is neither package.module:name nor a file: name a model, or a file that torch.export.save wrote."
        )
    if weights is not None:
        raise ValueError(f"{file} holds its own weights: leave --weights out.")
    program = guarded(f"{file} cannot be read as an exported program", lambda: torch.export.load(path))
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1:
        raise ValueError(f"{file} must take one tensor, the inputs: it takes {len(inputs)}.")
    value = next(node.meta.get("val") for node in program.graph.nodes if node.name == inputs[0])
    if not isinstance(value, Tensor) or value.ndim == 0:
        raise ValueError(f"{file} must take one tensor, the inputs: it takes {type(value).__name__}.")
    rows = value.shape[0]
    if isinstance(rows, int):
        smallest, largest = rows, rows
    else:
        limits = program.range_constraints.get(rows.node.expr)
        smallest, largest = (1, None) if limits is None else (_whole(limits.lower) or 1, _whole(limits.upper))
    return _Exported(program.module(), path.name, smallest, largest)


def _whole(limit: Any) -> int | None:
    """A limit of a batch's size; None where there is none."""
    return int(limit) if limit.is_Integer else None


class _Exported(nn.Module):
    """An exported program for batches of any size, whose rows it must treat one by one.

    Args:
        program: Takes batches of ``smallest`` to ``largest`` rows.
        name: What reports call it.
        smallest: Smaller batches are filled up by repeating their rows.
        largest: Larger batches are cut; None if there is no limit.
    """

    def __init__(self, program: nn.Module, name: str, smallest: int, largest: int | None) -> None:
        super().__init__()
        self.program = program
        self.__name__ = name
        self.smallest = smallest
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        step = self.largest or max(1, len(x))
        outputs = [self._outputs(x[start : start + step]) for start in range(0, max(1, len(x)), step)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _outputs(self, x: Tensor) -> Tensor:
        rows = len(x)
        if 0 < rows < self.smallest:
            x = x[torch.arange(self.smallest, device=x.device) % rows]
        output = self.program(x)
        if isinstance(output, (tuple, list)) and len(output) == 1:
            (output,) = output
        return output[:rows] if isinstance(output, Tensor) and len(output) > rows else output
