"""The JSON files of a model folder: read, and refused when they cannot be served."""

import json
from pathlib import Path

from vlmc.errors import VlmcError
from vlmc.families import by_model_type
from vlmc.families.spec import Checkpoint
from vlmc.schema import Json

MAX_JSON = 64 << 20
TOKENIZER = "tokenizer.json"


def read_checkpoint(folder: Path, *, tokenizer: bool = True) -> Checkpoint:
    """Parses what ``Checkpoint`` holds.

    Remote code that a checkpoint names (``auto_map``) is never run: a family known here is built
    from its own class.

    Args:
        folder: The model's folder.
        tokenizer: Whether ``tokenizer.json`` must be there; a plan does without it.

    Raises:
        VlmcError: A file is missing or broken, the model is of an unknown type, or quantized.
    """
    config = _required(folder, "config.json")
    at = str(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        hint = "a model folder in the layout of transformers has one"
        raise VlmcError("there is no 'model_type'", at=at, hint=hint)
    _known(model_type, config, at)
    for place, part in (("", config), ("text_config.", config.get("text_config"))):
        if isinstance(part, dict) and part.get("quantization_config") is not None:
            raise VlmcError(
                "this checkpoint is quantized already",
                at=f"{at}: {place}quantization_config",
                hint="start from the original checkpoint; the recipe's precision quantizes it",
            )
    processor = _optional(folder, "processor_config.json")
    nested = processor.get("image_processor")
    images = _optional(folder, "preprocessor_config.json")
    if not images and isinstance(nested, dict):
        images = nested
    if not images:
        raise VlmcError(
            "there is no image processor: neither preprocessor_config.json nor an "
            "'image_processor' in processor_config.json",
            at=str(folder),
            hint="save the processor into the folder: AutoProcessor.save_pretrained",
        )
    if tokenizer and not (folder / TOKENIZER).is_file():
        raise VlmcError(
            f"there is no {TOKENIZER}",
            at=str(folder),
            hint="save the fast tokenizer into the folder: AutoTokenizer.save_pretrained",
        )
    return Checkpoint(
        config=config,
        processor=processor,
        image_processor=images,
        generation=_optional(folder, "generation_config.json"),
        tokenizer_config=_optional(folder, "tokenizer_config.json"),
    )


def _known(model_type: str, config: Json, at: str) -> None:
    try:
        by_model_type(model_type, at=f"{at}: model_type")
    except VlmcError as error:
        if "auto_map" not in config:
            raise
        hint = "the checkpoint brings its own code; vlmc does not run remote code"
        raise VlmcError(
            error.message, at=error.at, allowed=error.allowed, got=error.got, hint=hint
        ) from None


def _required(folder: Path, name: str) -> Json:
    if not (folder / name).is_file():
        hint = "a model folder holds config.json, safetensors weights, tokenizer and processor"
        raise VlmcError(f"there is no {name}", at=str(folder), hint=hint)
    return read_json(folder / name)


def _optional(folder: Path, name: str) -> Json:
    return read_json(folder / name) if (folder / name).is_file() else {}


def read_json(path: Path) -> Json:
    """One JSON mapping.

    Raises:
        VlmcError: It cannot be read, is no UTF-8, no JSON, or no mapping.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise VlmcError("too large: over 64 MiB", at=str(path))
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise VlmcError(f"cannot be read: {error.strerror}", at=str(path)) from error
    except UnicodeDecodeError as error:
        raise VlmcError("not a text in UTF-8", at=str(path)) from error
    except json.JSONDecodeError as error:
        raise VlmcError(f"not valid JSON: {error.msg}", at=f"{path}:{error.lineno}") from error
    except (RecursionError, ValueError) as error:
        message = "not valid JSON: nested too deep, or a number too long"
        raise VlmcError(message, at=str(path)) from error
    if not isinstance(value, dict):
        raise VlmcError("a mapping is expected", at=str(path))
    return value
