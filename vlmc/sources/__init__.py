"""Where checkpoints come from: a local folder, or the hub."""

from vlmc.sources.folder import SourceFolder, resolve
from vlmc.sources.hashes import digests
from vlmc.sources.hub import UnreachableError
from vlmc.sources.metadata import read_checkpoint
from vlmc.sources.weights import check_weights

__all__ = [
    "SourceFolder",
    "UnreachableError",
    "check_weights",
    "digests",
    "read_checkpoint",
    "resolve",
]
