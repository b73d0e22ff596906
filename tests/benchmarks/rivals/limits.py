"""What the machine can do at most, measured beside the engines."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("limits.cpp")


def compiled(folder: Path) -> tuple[Path | None, str]:
    """The measuring program, or None and why there is none."""
    compiler = next((path for name in ("g++", "clang++") if (path := shutil.which(name))), None)
    if compiler is None:
        return None, "no C++ compiler"
    program = folder / "limits"
    command = [compiler, "-O3", "-march=native", "-pthread", "-o", str(program), str(SOURCE)]
    made = subprocess.run(command, capture_output=True, text=True)
    return (None, made.stderr.strip()) if made.returncode else (program, "")


def measured(program: Path, threads: int) -> dict[str, float]:
    """``read_1``, ``read`` and ``steady`` in bytes a second; the others in operations a second."""
    output = subprocess.run([program, str(threads)], capture_output=True, text=True, check=True)
    return {name: float(value) for name, value in json.loads(output.stdout).items() if value}
