"""Which argument of a model's forward is the data, and what does the forward return?"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from invreg.groups.batch import Batch, first_tensor

Key = int | str
"""Where an argument of a forward is: its position, or its keyword."""


@dataclass(frozen=True)
class Call:
    """A forward of a model, to be made again with other data: a callable from data to logits.

    Attributes:
        model: What is called, hooks and all.
        args: The arguments by position.
        kwargs: The arguments by keyword.
        key: Which of them is the data.
        logits: Takes what the model returns to its logits.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: Key
    logits: Callable[[Any], Tensor]

    @property
    def data(self) -> Batch:
        """The data of this call."""
        return self.args[self.key] if isinstance(self.key, int) else self.kwargs[self.key]

    def __call__(self, data: Batch) -> Tensor:
        """Other data: a multiple of the rows, for which the rows of the other arguments are repeated."""
        rows = len(first_tensor(self.data))
        copies = len(first_tensor(data)) // rows

        def repeated(value: Tensor) -> Tensor:
            if value.ndim == 0 or len(value) != rows:
                return value
            return value.repeat(copies, *[1] * (value.ndim - 1))

        args = tuple(data if i == self.key else map_nested(repeated, value) for i, value in enumerate(self.args))
        kwargs = {k: data if k == self.key else map_nested(repeated, value) for k, value in self.kwargs.items()}
        return self.logits(self.model(*args, **kwargs))

    def rows(self, index: Tensor) -> Call:
        """The same with some of the rows only."""
        rows = len(first_tensor(self.data))

        def selected(value: Tensor) -> Tensor:
            return value[index.to(value.device)] if value.ndim and len(value) == rows else value

        return Call(
            self.model, map_nested(selected, self.args), map_nested(selected, self.kwargs), self.key, self.logits
        )


class DataArgument:
    """Finds the data among the arguments of a model's forward.

    Args:
        model: Whose forward.
        name: The argument's name. None stands for the first floating-point tensor, or batch of several tensors.
        several: Whether the data is a mapping, tuple or list of tensors.

    Raises:
        TypeError: ``name`` is no string.
        ValueError: ``forward`` has no argument of this name.
    """

    def __init__(self, model: nn.Module, name: str | None, *, several: bool) -> None:
        if not (name is None or isinstance(name, str)):
            raise TypeError(f"inputs must be the name of an argument of the model's forward: got {name!r}.")
        self._name = name
        self._several = several
        parameters = inspect.signature(model.forward).parameters.values()
        names = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
        self._position = names.index(name) if name in names else None
        if name is not None and self._position is None and len(names) == len(parameters):
            raise ValueError(
                f"inputs must be an argument of {type(model).__name__}.forward, one of {names}: got {name!r}."
            )

    def key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
        """Where the data is.

        Raises:
            TypeError: It is not there.
        """
        if self._name is None:
            found: list[tuple[Key, Any]] = [*enumerate(args), *kwargs.items()]
            for key, value in found:
                if isinstance(value, (Mapping, tuple, list)) if self._several else _is_floating(value):
                    return key
            kind = "a mapping, tuple or list of tensors" if self._several else "a floating-point tensor"
            came = {
                key: str(value.dtype) if isinstance(value, Tensor) else type(value).__name__ for key, value in found
            }
            raise TypeError(
                f"The model's arguments must hold the data, as {kind}: got {came}. Name it with inputs=, or call the "
                "model with it."
            )
        if self._name in kwargs:
            return self._name
        if self._position is None or self._position >= len(args):
            raise TypeError(
                f"The model was called without its argument {self._name!r}, which the group acts on: got "
                f"{len(args)} by position and {list(kwargs)}."
            )
        return self._position


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def logits_of(returned: Any) -> Tensor:
    """A tensor as it is, or the logits of anything that has them.

    Raises:
        TypeError: There are none.
    """
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", returned)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"The model must return a tensor, or something with logits: got {type(returned).__name__}. Say what to "
            "compare with outputs=, e.g. outputs=lambda out: out[0]."
        )
    return logits


def map_nested(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Applies a function to the tensors in nested mappings, sequences and dataclasses, of which it makes copies."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping) and len(value):
        copied: Any = copy.copy(value)
        for key, entry in value.items():
            copied[key] = map_nested(function, entry)
        return copied
    if isinstance(value, (tuple, list)):
        entries = [map_nested(function, entry) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for field in fields(value):
            object.__setattr__(copied, field.name, map_nested(function, getattr(value, field.name)))
        return copied
    return value
