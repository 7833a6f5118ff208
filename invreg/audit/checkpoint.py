"""How does an audit go on after it was interrupted?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from invreg.audit.files import replaced


def read(path: Path) -> dict[str, Any] | None:
    """The state that was saved to a file; None if there is no such file.

    Raises:
        ValueError: The file holds something else.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state["settings"]  # what every audit saves
    except Exception as error:
        raise ValueError(f"checkpoint must be a file that an audit saved: {path} is not. Give another file.") from error
    return state


def write(state: dict[str, Any], path: Path) -> None:
    """Saves a state so that the file is whole at any time."""
    replaced(path, lambda part: torch.save(state, part))
