"""What is done to a saved checkpoint to make it one of those that are found in the wild."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def edit(path: Path, change: Callable[[Json], object]) -> None:
    """Changes a JSON file in place."""
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def resave(folder: Path, prefixes: Mapping[str, str], dtype: str = "float32") -> None:
    """Writes the weights again, names beginning otherwise and in another element type."""
    import torch
    from safetensors.torch import load_file, save_file

    def rename(name: str) -> str:
        found = next((old for old in prefixes if name.startswith(old)), "")
        return prefixes.get(found, "") + name.removeprefix(found)

    path = folder / "model.safetensors"
    held = {
        rename(name): value.to(getattr(torch, dtype)) for name, value in load_file(path).items()
    }
    save_file(held, path, metadata={"format": "pt"})
    edit(folder / "config.json", lambda config: config.update(dtype=dtype))


def template_to_tokenizer(folder: Path) -> None:
    """Moves the chat template into the tokenizer's settings."""
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    edit(folder / "tokenizer_config.json", lambda values: values.update(chat_template=text))
    template.unlink()


def say_tied(config: Json) -> None:
    """Claims that the output head is the embedding."""
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True


def split_processor(folder: Path, name: str) -> None:
    """Moves the image processor's settings to a file of their own, as older versions had them."""
    processor = folder / "processor_config.json"
    values = json.loads(processor.read_text(encoding="utf-8"))
    images = values.pop("image_processor") | {"image_processor_type": name}
    processor.write_text(json.dumps(values), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")


def shard(folder: Path) -> Path:
    """Saves the model again, in many files."""
    import transformers as hf

    model = hf.LlavaForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="150KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder
