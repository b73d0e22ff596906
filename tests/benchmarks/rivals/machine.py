"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from pathlib import Path
from typing import Any

from tests.benchmarks.rivals import environment
from vlmc.backends.onnxruntime.native import why_not

HERE = ("onnxruntime", "torch", "transformers", "numpy")
THERE = ("openvino-genai", "optimum-intel", "onnxruntime-genai", "llama-cpp-python")


def described(rivals: Path | None, threads: int) -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    cpus = Path("/proc/cpuinfo").read_text(errors="replace")
    names = re.findall(r"model name\s*: (.*)", cpus)
    flags = set((re.findall(r"flags\s*: (.*)", cpus) or [""])[0].split())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    found = {name: importlib.metadata.version(name) for name in HERE}
    others = environment.versions(rivals) if rivals is not None else {}
    found |= {name: others[name] for name in THERE if name in others}
    off = why_not()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(names),
        "threads": threads,
        "flags": [flag for flag in wanted if flag in flags],
        "memory_gib": round(int(memory[1]) / (1 << 20)) if memory else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": found,
        "kernels": f"vlmc's kernels are off ({off})" if off else "vlmc's kernels are on",
    }


def sentence(about: dict[str, Any]) -> str:
    """The same in words."""
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    threads, python = about["threads"], about["python"]
    return (
        f"{about['cpu']}, {about['cores']} cores ({', '.join(about['flags'])}), "
        f"{about['memory_gib']} GiB; {threads} threads; {about['kernels']}; Python {python}; "
        f"{versions}."
    )
