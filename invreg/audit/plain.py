"""How is a report told in dictionaries, lists, numbers and strings, and made from them again?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from invreg.audit.estimate import Estimate

NOT_SAVED = {"saved": False}
"""Metadata of a field that is left out."""

Readers = Mapping[str, Callable[[Any], Any]]
"""How fields are made, by name, that are neither estimates nor plain themselves."""


def plain(value: Any) -> Any:
    """The same in plain values; what is no dataclass and not plain has a method ``plain``."""
    if hasattr(value, "plain"):
        return value.plain()
    if is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value) if one.metadata != NOT_SAVED}
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (tuple, list)) else value


def made(kind: type[Any], state: Any, readers: Readers | None = None) -> Any:
    """Makes a dataclass from the dictionary of its fields, whose dictionaries are estimates unless a reader says.

    Raises:
        ValueError: The dictionary has other fields.
    """
    names = {one.name for one in fields(kind) if one.metadata != NOT_SAVED}
    if not isinstance(state, Mapping) or state.keys() != names:
        given = state.keys() if isinstance(state, Mapping) else set()
        raise ValueError(
            f"The dictionary of {kind.__name__} must have just its fields: "
            f"missing {sorted(names - given)}, unknown {sorted(given - names)}."
        )
    return kind(**{name: (readers or {}).get(name, _field)(value) for name, value in state.items()})


def all_made(kind: type[Any], readers: Readers | None = None) -> Callable[[Any], tuple[Any, ...]]:
    """How a list of such dictionaries is read."""
    return lambda states: tuple(made(kind, state, readers) for state in states)


def without_schema(state: Any, schema: int, noun: str) -> dict[str, Any]:
    """The fields in a dictionary of this schema.

    Raises:
        ValueError: It is no dictionary, or has another schema.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"A {noun} is made from a dictionary: got {type(state).__name__}. Use json.loads on a text.")
    if state.get("schema") != schema:
        raise ValueError(f"A {noun}'s dictionary must have schema {schema}: got {state.get('schema')!r}.")
    return {name: value for name, value in state.items() if name != "schema"}


def _field(value: Any) -> Any:
    if isinstance(value, Mapping):
        return made(Estimate, value)
    return tuple(value) if isinstance(value, list) else value
