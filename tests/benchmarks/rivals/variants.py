"""The table of engines: how each makes its files, and how it is opened."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.rivals.client import Launch
from tests.benchmarks.rivals.models import MODELS

CONTEXT = 1024
ROWS = 4
_VLMC = [sys.executable, "-m", "vlmc"]
_BUILDS = "tests.benchmarks.rivals.builds"


@dataclass(frozen=True)
class Place:
    """Where one model's files are.

    Attributes:
        model: Its key in ``MODELS``.
        folder: Of the model, in the cache.
        rivals: Python of the rivals' environment; None: there is none.
        sources: Unpacked sources of llama-cpp-python.
        threads: Of every engine.
    """

    model: str
    folder: Path
    rivals: Path | None
    sources: Path
    threads: int

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        engine: Module in ``engines``.
        out: Folder or file, in the model's folder, that says it is built, and whose size counts.
        commands: Make it.
        options: For ``open_session``, by number of rows.
        package: Of the rivals' environment; None: it runs where this benchmark runs.
        memory: What it takes once open, as a multiple of its files: a guess, to fit engines in.
    """

    engine: str
    out: tuple[str, ...]
    commands: Callable[[Place], list[list[str]]]
    options: Callable[[Place, int], dict[str, Any]]
    package: str | None = None
    memory: float = 1.5

    def launch(self, place: Place, rows: int) -> Launch:
        python = sys.executable if self.package is None else str(place.rivals)
        return Launch(python, self.engine, self.options(place, rows))


def _vlmc(precision: str, *, tables: bool = False) -> Variant:
    """``tables``: embedding and head in as few bits as the layers, as some engines have them."""
    own = f"{precision}-tables" if tables else precision
    more = f"quantize: {{embedding: {precision}, head: {precision}}}\n" if tables else ""

    def commands(place: Place) -> list[list[str]]:
        made = []
        for rows in (ROWS, 1):  # what says that it is built comes last
            recipe = place.folder / f"vlmc-{own}-{rows}.yaml"
            vision = "fp32" if precision == "fp32" else "int8"
            recipe.write_text(
                f"model: ./checkpoint\nprecision: {{language: {precision}, vision: {vision}}}\n"
                f"ctx-len: {CONTEXT}\nprefill-seq-len: {CONTEXT}\nbatch-size: {rows}\n"
                f"compile: {{threads: {place.threads}}}\nchecks: {{reference: off}}\n" + more
            )
            words = ["build", str(recipe), "--out", str(place.folder), "--json"]
            made.append([*_VLMC, *words, "--cache", str(place.folder / f"cache-{precision}")])
        return made

    def options(place: Place, rows: int) -> dict[str, Any]:
        return {"folder": str(place.folder / f"vlmc-{own}-{min(rows, ROWS)}")}

    return Variant("vlmc", (f"vlmc-{own}-1/latest",), commands, options)


def _transformers(dtype: str, compiled: bool) -> Variant:
    def options(place: Place, rows: int) -> dict[str, Any]:
        return {"folder": str(place.checkpoint), "dtype": dtype, "compiled": compiled}

    memory = 3.0 if dtype == "float32" else 1.5
    return Variant("transformers", ("checkpoint",), lambda place: [], options, memory=memory)


def _openvino(*words: str, computes: str = "") -> Variant:
    out = f"openvino-{words[0]}"

    def commands(place: Place) -> list[list[str]]:
        assert place.rivals is not None
        tool = str(place.rivals.with_name("optimum-cli"))
        task = ["--task", "image-text-to-text", "--weight-format", *words]
        export = [tool, "export", "openvino", "-m", str(place.checkpoint), *task]
        # GenAI reads the picture's size from a file that optimum leaves out.
        images = str(place.checkpoint / "preprocessor_config.json")
        return [[*export, str(place.folder / out)], ["cp", images, str(place.folder / out)]]

    def options(place: Place, rows: int) -> dict[str, Any]:
        return {"folder": str(place.folder / out), "computes": computes}

    return Variant("openvino", (out,), commands, options, "openvino-genai")


def _ortgenai(precision: str) -> Variant:
    out = f"ortgenai-{precision}"

    def commands(place: Place) -> list[list[str]]:
        text = str(place.folder / "text")
        words = ["-i", text, "-o", str(place.folder / out), "-p", precision, "-e", "cpu"]
        words += ["-m", text, "-c", str(place.folder / "ortgenai-cache")]
        builder = [str(place.rivals), "-m", "onnxruntime_genai.models.builder", *words]
        return [_text_only(place), builder]

    def options(place: Place, rows: int) -> dict[str, Any]:
        return {"folder": str(place.folder / out)}

    return Variant("ortgenai", (out,), commands, options, "onnxruntime-genai")


def _llamacpp(kind: str) -> Variant:
    file, eyes, whole = f"{kind.lower()}.gguf", "mmproj.gguf", "bf16.gguf"

    def commands(place: Place) -> list[list[str]]:
        python, folder = str(place.rivals), place.folder
        convert = [python, "-m", f"{_BUILDS}.gguf_converted", str(place.sources)]
        steps = []
        if place.model in _AS_TEXT:
            steps.append(_text_only(place))
            source = folder / "text"
        else:
            source = place.checkpoint
        if place.model in _OWN_PROJECTOR:
            projector = [python, "-m", f"{_BUILDS}.gguf_projector"]
            projector += [str(place.checkpoint), str(folder / eyes)]
        else:
            projector = [*convert, str(place.checkpoint), "--mmproj", "--outtype", "q8_0"]
            projector += ["--outfile", str(folder / eyes)]
        steps.append([*convert, str(source), "--outtype", "bf16", "--outfile", str(folder / whole)])
        quantize = [python, "-m", f"{_BUILDS}.gguf_quantized", str(folder / whole)]
        quantize += [str(folder / file), kind, str(place.threads)]
        return [*steps, projector, quantize]

    def options(place: Place, rows: int) -> dict[str, Any]:
        return {
            "model": str(place.folder / file),
            "projector": str(place.folder / eyes),
            "template": _TEMPLATES[place.model],
        }

    return Variant("llamacpp", (file, eyes), commands, options, "llama-cpp-python")


def _text_only(place: Place) -> list[str]:
    words = [str(place.checkpoint), str(place.folder / "text"), *MODELS[place.model].text_model]
    return [sys.executable, "-m", f"{_BUILDS}.text_only", *words]


# Models whose decoder llama.cpp converts as the text model it is.
_AS_TEXT = ("llava05", "smolvlm256m", "tiny")
# Models whose tower and projector its converter does not know.
_OWN_PROJECTOR = ("llava05", "tiny")
# The chat templates' text, for a library that has no jinja.
_CHATML = (
    "<|im_start|>user\n<|vision_start|>IMAGE<|vision_end|>TEXT<|im_end|>\n<|im_start|>assistant\n"
)
_TEMPLATES = {
    "llava05": "USER: IMAGE\nTEXT ASSISTANT:",
    "tiny": "USER: IMAGE\nTEXT ASSISTANT:",
    "qwen2vl2b": _CHATML,
    "smolvlm256m": "<|im_start|>User:IMAGETEXT<end_of_utterance>\nAssistant:",
}

VARIANTS: dict[str, Variant] = {
    "vlmc fp32": _vlmc("fp32"),
    "vlmc int8": _vlmc("int8"),
    "vlmc int4": _vlmc("int4"),
    "vlmc int4 tables": _vlmc("int4", tables=True),
    "transformers fp32": _transformers("float32", False),
    "transformers bf16": _transformers("bfloat16", False),
    "transformers bf16 compiled": _transformers("bfloat16", True),
    "openvino fp32": _openvino("fp32", computes="f32"),
    "openvino int8": _openvino("int8"),
    "openvino int4": _openvino("int4", "--group-size", "32"),
    "onnxruntime-genai int8": _ortgenai("int8"),
    "onnxruntime-genai int4": _ortgenai("int4"),
    "llama.cpp Q8_0": _llamacpp("Q8_0"),
    "llama.cpp Q4_0": _llamacpp("Q4_0"),
    "llama.cpp Q4_K_M": _llamacpp("Q4_K_M"),
}
