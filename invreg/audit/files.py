"""How is a file written so that it is whole at any time?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def replaced(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside the one of this path, and puts it in its place when it is done.

    Raises:
        FileNotFoundError: The folder is not there.
        IsADirectoryError: The path is a folder.
    """
    target = path.resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"The folder to write to must exist: there is no {target.parent}. Make it first.")
    if target.is_dir():
        raise IsADirectoryError(f"A file must have a name of its own: {target} is a folder. Add a name.")
    if target.exists() and not target.is_file():  # a device or a pipe, which has no content to be kept whole
        write(target)
        return
    part = target.with_name(f".{target.name}.part")
    try:
        write(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
