"""Our own CPU kernels, as operators of onnxruntime: compiled at install time where that works.

The library is never imported. It is a plain C interface that ``SessionOptions`` is given; a
session that is given ``THREADS`` as a config entry splits its products for that many threads.
"""

import ctypes
import os
import struct
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

DOMAIN = "vlmc.kernels"
THREADS = "vlmc.threads"  # session config entry; without it, the CPUs of the affinity mask
SWITCH = "VLMC_KERNELS"

INTERFACE = 9  # kInterface of kernels.h; the version of the domain
# What builds call beside the operators; a library from before one was there has the same interface.
_CALLED = ("vlmc_quantize_stored", "vlmc_round_blocks", "vlmc_linear_exact")
_FOLDER = Path(__file__).parent
_OFF = {"off", "0", "no", "false"}


def library() -> Path | None:
    """The kernels for ``register_custom_ops_library``; None where they can't serve.

    They serve where the package was installed with a C++ compiler, on a CPU with AVX-512 VNNI,
    unless the environment says ``VLMC_KERNELS=off``. Never raises; see ``why_not``.
    """
    return None if why_not() else _file()


def why_not() -> str:
    """Why ``library`` is None; empty where it is not."""
    if os.environ.get(SWITCH, "").strip().lower() in _OFF:
        return f"{SWITCH}={os.environ[SWITCH]}"
    file = _file()
    return (
        _fault(file) if file else "not compiled when vlmc was installed: is there a C++ compiler?"
    )


@cache
def instructions() -> str:
    """What the kernels compute with, where they serve: tiles too where CPU and system have them."""
    tiles = ctypes.CDLL(str(_file())).vlmc_kernels_tiles()
    return "AVX-512 VNNI and AMX" if tiles else "AVX-512 VNNI"


def _file() -> Path | None:
    return _built(_FOLDER)


@cache  # a build asks for each piece of a weight
def _built(folder: Path) -> Path | None:
    files = (folder / f"kernels{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


@cache
def _fault(file: Path) -> str:
    """What is wrong with a library that was built; asked once, as loading is for good."""
    try:
        if not _whole(file):
            return f"{file.name} is cut short"
        kernels = ctypes.CDLL(str(file))
        known = all(hasattr(kernels, name) for name in _CALLED)
        if kernels.vlmc_kernels_interface() != INTERFACE or not known:
            return f"{file.name} was built from other sources: install vlmc again"
        if not kernels.vlmc_kernels_supported():
            return "this CPU has no AVX-512 VNNI"
    except (OSError, AttributeError) as error:  # not a library; not this one
        return f"{file.name} cannot be loaded: {error}"
    return ""


def _whole(file: Path) -> bool:
    """False for an ELF file that ends before its last part, which would crash its loader.

    Other kinds of files are left to the loader.
    """
    with file.open("rb") as stream:
        head = stream.read(64)
    if head[:5] != b"\x7fELF\x02":
        return True
    if len(head) < 64:
        return False
    sections_at, entry, entries = struct.unpack_from("<Q10xHH", head, 40)
    return bool(file.stat().st_size >= sections_at + entry * entries)
