"""A recipe's model as a folder on this machine."""

import re
from dataclasses import dataclass
from pathlib import Path

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.passes.checkpoint_index import SHARDED, SINGLE
from vlmc.recipe import Recipe
from vlmc.sources.metadata import read_json
from vlmc.sources.weights import refuse_pickles

LOCAL = "local"
# What a build reads beside the weights; nothing else of a repository is fetched or hashed.
METADATA = ("*.json", "*.jinja", "*.model", "*.txt")
_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".safetensors")


@dataclass(frozen=True)
class SourceFolder:
    """A model's files, here.

    Attributes:
        model: The hub id, or ``local``: a folder is known by its content, not its path.
        revision: The hub's commit; None for a folder.
        folder: Where the files lie.
        files: Names of the files a build may read, sorted: those in ``folder`` itself, and
            ``NAME/FILE`` of the folders in it that the model's family reads.
        name: What errors call it.
    """

    model: str
    revision: str | None
    folder: Path
    files: tuple[str, ...]
    name: str


def resolve(
    recipe: Recipe, *, cache: Path | None = None, offline: bool = False, weights: bool = True
) -> SourceFolder:
    """Finds the model's files, downloading what is missing.

    Args:
        recipe: Names the model and its revision.
        cache: Where downloads are kept; None: the hub client's own cache.
        offline: Use only what is here already.
        weights: Whether weights are needed; without them only small files are fetched.

    Raises:
        VlmcError: There is no such model, it cannot be reached, access is refused, or it has
            pickled weights only.
    """
    if recipe.folder is not None:
        return _local(recipe.folder, weights=weights)
    from vlmc.sources.hub import download

    model = recipe.model
    folder, revision, present = download(
        model, recipe.revision, METADATA, cache=cache, offline=offline, silent=True
    )
    for inside in _folders(folder):
        patterns = [f"{inside}/{pattern}" for pattern in METADATA]
        download(model, revision, patterns, cache=cache, offline=offline, silent=True, nested=True)
    if weights:
        needed = (*METADATA, *_weight_files(folder))
        folder, revision, present = download(model, revision, needed, cache=cache, offline=offline)
    return SourceFolder(model, revision, folder, _readable(present, folder), model)


def _weight_files(folder: Path) -> tuple[str, ...]:
    """Names of the weights; repositories may hold the same weights in other files as well."""
    if not (folder / SHARDED).is_file():
        return (SINGLE,)
    shards = read_json(folder / SHARDED).get("weight_map")
    if not isinstance(shards, dict) or not all(_is_plain(name) for name in shards.values()):
        raise VlmcError("'weight_map' does not map tensors to files", at=str(folder / SHARDED))
    return tuple(sorted(set(shards.values())))


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) is not None


def _local(folder: Path, *, weights: bool) -> SourceFolder:
    if not folder.is_dir():
        raise VlmcError("there is no such folder", at=str(folder))
    try:
        names = sorted(p.name for p in folder.iterdir() if p.is_file())
    except OSError as error:
        raise VlmcError(f"cannot be read: {error.strerror}", at=str(folder)) from error
    if weights or not any(name.endswith(".safetensors") for name in names):
        refuse_pickles(names, model=str(folder), at=str(folder))
    return SourceFolder(LOCAL, None, folder, _readable(names, folder), str(folder))


def _readable(names: list[str], folder: Path) -> tuple[str, ...]:
    nested = [
        f"{inside}/{path.name}"
        for inside in _folders(folder)
        for path in (folder / inside).glob("*")
        if path.is_file() and not path.name.endswith(".safetensors")
    ]
    return tuple(sorted(name for name in [*names, *nested] if name.endswith(_SUFFIXES)))


def _folders(folder: Path) -> tuple[str, ...]:
    """The folders inside a model's that its family reads; none where it has no family."""
    if not (folder / "config.json").is_file():
        return ()
    kind = read_json(folder / "config.json").get("model_type")
    return next((row.folders for row in FAMILIES.values() if kind in row.model_types), ())
