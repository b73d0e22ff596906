"""GGUF in 16 bits to a smaller kind, by llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes
import sys


def main(source: str, out: str, kind: str, threads: int) -> None:
    import llama_cpp as lib

    options = lib.llama_model_quantize_default_params()
    options.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.nthread = threads
    if code := lib.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(options)):
        raise SystemExit(f"llama_model_quantize gave {code}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
