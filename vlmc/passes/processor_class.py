"""transformers' processor class of a checkpoint, on machines without torchvision too."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMED_IN = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def processor_class(folder: Path) -> Any:
    """The class that a checkpoint's files name, or else the one of its model type.

    Some modules import a function from the image processor of torchvision that the one of Pillow
    has too; then it is taken from there.

    Raises:
        ImportError: It cannot be imported in any case.
        KeyError: transformers has none for this model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import (
        PROCESSOR_MAPPING,
        PROCESSOR_MAPPING_NAMES,
    )

    kinds = {name: kind for kind, name in reversed(PROCESSOR_MAPPING_NAMES.items())}
    named = _named(folder) or ""
    if named not in kinds:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        package = type(config).__module__.split(".")[-2]
        if type(config) in PROCESSOR_MAPPING:
            known = PROCESSOR_MAPPING[type(config)]
            if known.__name__ in kinds:
                return known
            package = config.model_type
        # A part of a model has the whole's.
        named = PROCESSOR_MAPPING_NAMES[package]
    module = f"transformers.models.{kinds[named]}"
    try:
        found = importlib.import_module(f"{module}.processing_{kinds[named]}")
    except ImportError:
        with _pil_images(module, kinds[named]):
            found = importlib.import_module(f"{module}.processing_{kinds[named]}")
    return getattr(found, named)


def _named(folder: Path) -> str | None:
    for name in _NAMED_IN:
        path = folder / name
        value = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if isinstance(value, dict) and isinstance(value.get("processor_class"), str):
            return str(value["processor_class"])
    return None


@contextmanager
def _pil_images(module: str, kind: str) -> Iterator[None]:
    name = f"{module}.image_processing_{kind}"
    sys.modules[name] = importlib.import_module(f"{module}.image_processing_pil_{kind}")
    try:
        yield
    finally:
        del sys.modules[name]
