"""load: everything of a checkpoint but its weights, as the files a bundle carries."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmc.bundle.manifest import GenerationSpec, ImageSpec, PromptSpec
from vlmc.bundle.store import canonical_json
from vlmc.errors import VlmcError
from vlmc.schema import Frozen, Json

PROCESSOR = "processor"
GENERATION = "generation.json"
# What a generation config may suggest for sampling; the rest steers transformers alone.
_SUGGESTED = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def load(
    prompt: PromptSpec,
    files: Mapping[str, bytes],
    images: ImageSpec,
    generation: GenerationSpec,
    out: Path,
) -> None:
    """Writes ``processor/`` (tokenizer, template, prompt, image processing) and the end tokens."""
    folder = out / PROCESSOR
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    described: tuple[tuple[Path, Frozen], ...] = (
        (folder / "prompt.json", prompt),
        (folder / "images.json", images),
        (out / GENERATION, generation),
    )
    for path, value in described:
        path.write_bytes(canonical_json(value.model_dump(mode="json")))


def read_generation(
    config: Json, generation: Json, ends: Sequence[int] | None = None
) -> GenerationSpec:
    """End tokens and suggestions, from ``generation_config.json`` or else ``config.json``.

    Mirrors ``transformers.GenerationConfig.from_model_config``: without a generation config the
    model's own ``eos_token_id`` counts, then its text part's.

    Args:
        config: ``config.json``.
        generation: ``generation_config.json``.
        ends: The end tokens, where the family knows them better.

    Raises:
        VlmcError: ``eos_token_id`` is neither a whole number nor a list of them.
    """
    text = config.get("text_config")
    holders = [generation, config, text if isinstance(text, dict) else {}]
    value: Any = next((h["eos_token_id"] for h in holders if h.get("eos_token_id") is not None), [])
    ids = value if isinstance(value, list) else [value]
    ids = ids if ends is None else list(ends)
    if not all(type(token) is int and token >= 0 for token in ids):
        raise VlmcError(f"{value!r} is no token id", at="generation_config.json: eos_token_id")
    suggested = {key: generation[key] for key in _SUGGESTED if generation.get(key) is not None}
    return GenerationSpec(eos_token_ids=tuple(ids), suggested=suggested)
