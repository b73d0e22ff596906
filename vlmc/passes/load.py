"""load: everything of a checkpoint but its weights, as the files a bundle carries."""

from collections.abc import Mapping
from pathlib import Path

from vlmc.bundle.manifest import GenerationSpec, ImageSpec, PromptSpec
from vlmc.bundle.store import canonical_json
from vlmc.schema import Frozen

PROCESSOR = "processor"
GENERATION = "generation.json"


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
