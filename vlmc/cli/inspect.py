"""``vlmc inspect``: what is in a bundle."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vlmc.bundle.manifest import Manifest, ProgramSpec, TensorSpec
from vlmc.bundle.store import read_bundle
from vlmc.cli.sizes import size_text
from vlmc.schema import Json


def inspect(
    bundle: Annotated[Path, typer.Argument(help="A version folder, or a NAME folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is in a bundle: programs, inputs, precision, sizes, limits, sources."""
    found = read_bundle(bundle)
    manifest = found.manifest
    if as_json:
        values: Json = manifest.model_dump(mode="json")
        values["path"] = str(found.folder)
        values["size"] = _size(manifest)
        values["kv_cache_size"] = _cache_size(manifest)
        print(json.dumps(values, sort_keys=True))
        return
    for line in _lines(manifest):
        print(line)


def _lines(manifest: Manifest) -> list[str]:
    source = manifest.source
    limits = manifest.limits
    lines = [
        f"{manifest.name} {manifest.version}: {manifest.family}, "
        f"{size_text(_size(manifest))} in {len(manifest.files) + 1} files",
        f"  model      {source.model}" + (f" at {source.revision}" if source.revision else ""),
        f"  precision  {_words(manifest.recipe.get('precision'))}",
        f"  split      {manifest.split}, for {manifest.backend}",
        f"  limits     ctx-len {limits.ctx_len}, prefill-seq-len {limits.prefill_seq_len}, "
        f"batch-size {limits.batch_size}, images {limits.max_images}",
        f"  kv cache   {size_text(_cache_size(manifest))}",
        f"  positions  {manifest.positions.scheme}",
        f"  end tokens {', '.join(str(token) for token in manifest.generation.eos_token_ids)}",
    ]
    if manifest.generation.suggested:
        lines.append(f"  suggested  {_words(manifest.generation.suggested)}")
    if rules := manifest.generation.logits.model_dump(mode="json", exclude_defaults=True):
        lines.append(f"  logits     {_words(rules)}")
    if manifest.generation.left_out:
        lines.append(f"  left out   {_words(manifest.generation.left_out)}")
    for name, program in manifest.programs.items():
        lines += _program_lines(name, program, manifest)
    lines += ["files", *_file_lines(manifest)]
    lines += ["made with", *(f"  {tool} {made}" for tool, made in sorted(manifest.tools.items()))]
    return lines


def _program_lines(name: str, program: ProgramSpec, manifest: Manifest) -> list[str]:
    size = sum(manifest.files[file].size for file in program.weights)
    lines = [f"program {name}: {program.file}, weights {size_text(size)}"]
    for side, specs in (("in ", program.inputs), ("out", program.outputs)):
        states = [spec for spec in specs if spec.name.startswith(("past_", "present_"))]
        lines += [f"  {side} {_tensor(spec)}" for spec in specs if spec not in states]
        if states:
            first, last = states[0], states[-1]
            lines.append(f"  {side} {_tensor(first)} ... {last.name}: {len(states)} states")
    return lines


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} [{', '.join(str(size) for size in spec.shape)}]"


def _file_lines(manifest: Manifest) -> list[str]:
    return [
        f"  {size_text(entry.size):>10}  {entry.sha256[:12]}  {name}"
        for name, entry in sorted(manifest.files.items())
    ]


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in sorted(value.items()))
    return str(value)


# ``vlmc.runtime.cache.MEMORY``, without the libraries that come with it.
_MEMORY = ("past_key.", "past_value.", "past_state.", "past_matrix.")


def _size(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files.values())


def _cache_size(manifest: Manifest) -> int:
    """Bytes of the key-value cache of all slots."""
    total = 0
    for program in manifest.programs.values():
        for spec in program.inputs:
            if spec.name.startswith(_MEMORY):
                count = manifest.limits.batch_size
                for size in spec.shape[1:]:
                    count *= size if isinstance(size, int) else 1
                total += count * (2 if spec.dtype == "float16" else 4)
    return total
