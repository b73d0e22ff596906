"""The cache of passes, and the runner that uses it."""

import os
from pathlib import Path

from vlmc.workspace.copies import Copies, begin_copies
from vlmc.workspace.runner import Workspace
from vlmc.workspace.values import Artifact, Event, Input, Lazy, Record


def cache_dir() -> Path:
    """``$VLMC_CACHE``, else ``vlmc`` in the user's cache folder (XDG)."""
    if named := os.environ.get("VLMC_CACHE"):
        return Path(named).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    return (Path(caches) if os.path.isabs(caches) else Path.home() / ".cache") / "vlmc"


__all__ = [
    "Artifact",
    "Copies",
    "Event",
    "Input",
    "Lazy",
    "Record",
    "Workspace",
    "begin_copies",
    "cache_dir",
]
