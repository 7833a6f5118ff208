"""Which object does ``package.module:name`` name?"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from operator import attrgetter
from typing import Any

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_name(word: str) -> bool:
    """Whether a word has the form ``package.module:name``, attributes of attributes included."""
    return _NAME.fullmatch(word) is not None


def named_object(word: str) -> Any:
    """Imports a module and returns what it calls so.

    Raises:
        ValueError: The word has another form, the module cannot be imported, or it has no such attribute.
    """
    if not is_name(word):
        raise ValueError(f"{word!r} must have the form package.module:name.")
    module_name, _, attribute = word.partition(":")
    module = guarded(f"{module_name!r} cannot be imported", lambda: importlib.import_module(module_name))
    return guarded(f"{word!r} is not there", lambda: attrgetter(attribute)(module))


def guarded(failure: str, call: Callable[[], Any]) -> Any:
    """Runs code of the user's; what it raises becomes the cause of a ``ValueError`` that begins with ``failure``."""
    try:
        return call()
    except (Exception, SystemExit) as error:  # a script without a main guard may end in sys.exit
        raise ValueError(f"{failure}: {type(error).__name__}: {error}") from error
