"""Whether a command can write where it is told to, asked before hours of work for it."""

import os
from pathlib import Path

from vlmc.errors import VlmcError


def need_folder(path: Path, *, at: str) -> None:
    """Refuses a folder that cannot be made or written to.

    Args:
        path: The folder, which need not exist.
        at: The flag that names it.

    Raises:
        VlmcError: It is in a file, or where nothing may be written.
    """
    whole = path.absolute()
    there = next(part for part in (whole, *whole.parents) if os.path.exists(part))
    if not there.is_dir():
        raise VlmcError(f"'{there}' is a file, not a folder", at=f"{at} {path}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise VlmcError(f"'{there}' cannot be written to", at=f"{at} {path}")
