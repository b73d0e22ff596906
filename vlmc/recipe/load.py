"""A recipe file and its overrides, read, checked and with its model located."""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from vlmc.errors import VlmcError
from vlmc.recipe.mistakes import explain, show
from vlmc.recipe.schema import Quantize, Recipe
from vlmc.recipe.text import Keys, Parsed, parse, read_text

# As the hub's client has it: owner/name, no doubled or outer '-' and '.', 96 characters in all.
_HUB_ID = re.compile(r"(?!.*(--|\.\.))(?=.{3,96}$)\w[\w.-]*/(\w|\w[\w.-]*\w)(?<!\.git)", re.ASCII)
_HUB_URL = re.compile(r"https?://[^/]+/([^/]+/[^/?#]+)")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe; nothing but the file itself is opened.

    Args:
        path: The YAML file.
        overrides: ``key.path=value`` each, as ``--set`` takes them; the last of two wins. The
            value is read as YAML.

    Returns:
        The recipe; ``model`` is a hub id or an absolute path, ``name`` is filled in.

    Raises:
        VlmcError: Anything is wrong with it; several mistakes are listed in one error.
    """
    parsed = parse(read_text(path), str(path))
    if parsed.value is None:
        raise VlmcError("the recipe is empty", at=str(path), hint="it needs at least 'model:'")
    if not isinstance(parsed.value, dict):
        message = f"a recipe is a mapping of keys to values, not {show(parsed.value)}"
        raise VlmcError(message, at=str(path))
    values: dict[str, object] = parsed.value
    flags: dict[Keys, str] = {}
    for override in overrides:
        flags[_override(values, override)] = override.partition("=")[0]

    def place(keys: Keys) -> str:
        return _place(path, parsed, flags, keys)

    if "name" not in values:
        values["name"] = _default_name(path)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise explain(error, place, str(path)) from None
    _check_lengths(recipe, place(("prefill-seq-len",)))
    _check_pixels(recipe, place(("images", "min-pixels")))
    model = _locate(recipe.model, path.parent, place(("model",)))
    quantize = _locate_questions(recipe.quantize, path.parent, place(("quantize", "calibration")))
    located = recipe.model_copy(update={"model": model, "quantize": quantize})
    if located.folder is not None and located.revision is not None:
        message = "a revision is a hub commit; this model is a local folder"
        raise VlmcError(message, at=place(("revision",)), hint="leave 'revision' out")
    return located


def _override(values: dict[str, object], override: str) -> Keys:
    """Sets one value in place; its key path."""
    name, equals, text = override.partition("=")
    at = f"--set {override}"
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise VlmcError("write it as key=value or section.key=value", at=at)
    value = parse(text, at, numbered=False).value
    inner = values
    for depth, key in enumerate(keys[:-1], start=1):
        below = inner.get(key)
        if keys[:depth] == ("precision",) and isinstance(below, str):
            below = {"language": below}
        if below is None:
            below = {}
        if not isinstance(below, dict):
            place = ".".join(keys[:depth])
            raise VlmcError(f"'{place}' is {show(below)}, not a mapping", at=at)
        inner[key] = below
        inner = below
    inner[keys[-1]] = value
    return keys


def _place(path: Path, parsed: Parsed, flags: dict[Keys, str], keys: Keys) -> str:
    """Where a key was written: the longest part of its path that a flag or a line gave."""
    for end in range(len(keys), 0, -1):
        if keys[:end] in flags:
            return f"--set {'.'.join(keys[:end])}"
        if keys[:end] in parsed.lines:
            # A word given where a mapping may stand (precision: int4) is named as it was written.
            written = keys[:end] if end < len(keys) and keys[0] == "precision" else keys
            return f"{path}:{parsed.lines[keys[:end]]}: {'.'.join(written)}"
    by_flag = next((flag for flag in flags if flag[: len(keys)] == keys), None)
    return f"--set {'.'.join(by_flag)}" if by_flag else f"{path}: {'.'.join(keys)}"


def _default_name(path: Path) -> str:
    """The file's stem, with what a safe name cannot hold made '-'."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)[:128].strip("-.")
    if not name:
        raise VlmcError(
            "the file's name gives the bundle none",
            at=f"{path}: name",
            hint="add one, such as 'name: my-model', or --set name=my-model",
        )
    return name


def _check_lengths(recipe: Recipe, at: str) -> None:
    step, context = recipe.prefill_seq_len, recipe.ctx_len
    if step is not None and context is not None and step > context:
        message = f"prefill-seq-len {step} is more than ctx-len {context}"
        raise VlmcError(message, at=at, hint="a prefill step cannot be longer than the KV cache")


def _check_pixels(recipe: Recipe, at: str) -> None:
    low, high = recipe.images.min_pixels, recipe.images.max_pixels
    if low is not None and high is not None and low > high:
        raise VlmcError(f"min-pixels {low} is more than max-pixels {high}", at=at)


def _locate_questions(quantize: Quantize, base: Path, at: str) -> Quantize:
    """With the absolute path of its file of questions, if it names one."""
    if quantize.questions is None:
        return quantize
    if "\0" in quantize.calibration:
        raise VlmcError("a path cannot hold a NUL character", at=at)
    path = (base / quantize.questions.expanduser()).absolute()
    if not path.is_file():
        raise VlmcError(
            f"there is no file {show(quantize.calibration)}",
            at=at,
            allowed=("auto", "off", "a file of questions beside the recipe"),
            got=quantize.calibration,
        )
    return quantize.model_copy(update={"calibration": str(path)})


def _locate(model: str, base: Path, at: str) -> str:
    """A hub id as it is, or the absolute path of a folder that exists."""
    if url := _HUB_URL.match(model):
        message = "a model is a hub id or a folder, not a URL"
        raise VlmcError(message, at=at, hint=f"write 'model: {url[1]}'")
    if "\0" in model:
        raise VlmcError("a path cannot hold a NUL character", at=at)
    marked = model in {".", "..", "~"} or model.startswith(("./", "../", "/", "~/"))
    path = Path(model)
    folder = (path.expanduser() if model.startswith("~") else base / path).absolute()
    try:
        folder = folder.resolve()
        if folder.is_dir():
            return str(folder)
        is_file = folder.exists()
    except OSError as error:
        raise VlmcError(f"{show(model)} cannot be read: {error.strerror}", at=at) from error
    if is_file:
        raise VlmcError(f"{show(model)} is a file, not a model folder", at=at)
    if marked:
        hint = "a folder is looked for beside the recipe file"
        raise VlmcError(f"there is no folder {show(model)}", at=at, hint=hint)
    if "@" in model and _HUB_ID.fullmatch(model.partition("@")[0]):
        name, _, commit = model.partition("@")
        raise VlmcError(
            "a hub id has no '@'", at=at, hint=f"write 'model: {name}' and 'revision: {commit}'"
        )
    if not _HUB_ID.fullmatch(model):
        hint = "a hub id is owner/name; a folder is looked for beside the recipe file"
        raise VlmcError(f"{show(model)} is neither a hub id nor a folder", at=at, hint=hint)
    return model
