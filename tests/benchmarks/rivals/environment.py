"""The rivals' own environment: made with pip from a pinned list, or one that is there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Collection
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
LLAMA = "llama-cpp-python==0.3.36"
TILES = Path(__file__).with_name("tiles.h")


def prepare(folder: Path, packages: Collection[str]) -> tuple[Path, dict[str, str]]:
    """The environment's Python, and which of the packages could not be installed, and why."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    failed = {}
    have = versions(python)
    wanted = [name for name in packages if name not in have]
    if wanted:
        if reason := _pip(python, "-r", str(REQUIREMENTS)):
            failed = dict.fromkeys(wanted, reason)
        remove = [python, "-m", "pip", "uninstall", "-qy", "torchvision"]
        subprocess.run(remove, capture_output=True)
    if "llama-cpp-python" in wanted and not failed and (reason := llama_compiled(python)):
        failed["llama-cpp-python"] = reason
    return python, failed


def versions(python: Path) -> dict[str, str]:
    """What is installed there."""
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version"
        " for d in m.distributions()}))"
    )
    output = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(output.stdout)
    return found


def llama_sources(python: Path, folder: Path) -> Path:
    """The source package of llama-cpp-python, unpacked: llama.cpp's converter is in it."""
    if not any(folder.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py")):
        folder.mkdir(parents=True, exist_ok=True)
        words = ["download", "--no-deps", "--no-binary", ":all:", "-qd", str(folder), LLAMA]
        subprocess.run([python, "-m", "pip", *words], check=True)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as packed:
            packed.extractall(folder, filter="data")
    return folder


def llama_compiled(python: Path) -> str:
    """Compiles llama.cpp for this machine; why it failed, or nothing."""
    flags = f"{os.environ.get('CXXFLAGS', '')} -include {shlex.quote(str(TILES))}"
    # No wheel that pip kept: it may be of another processor, or of other flags.
    return _pip(python, "--no-cache-dir", "--no-binary", "llama-cpp-python", LLAMA, CXXFLAGS=flags)


def _pip(python: Path, *words: str, **variables: str) -> str:
    """Installs; why it failed, or nothing."""
    command = [python, "-m", "pip", "install", "-q", *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    lines = done.stderr.strip().splitlines()
    return (lines[-1] if lines else "pip failed") if done.returncode else ""
