"""GGUF by llama.cpp's own converter, which comes with the sources of llama-cpp-python.

``SOURCES`` holds the unpacked source package. The converter knows tokenizers by a hash of what
they make of a text; this benchmark's are byte-level BPE cut as GPT-2 cuts, so it is told.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main(sources: Path, *words: str) -> None:
    script = next(sources.glob("**/vendor/llama.cpp/convert_hf_to_gguf.py"))
    sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
