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

from vlmc.errors import VlmcError

DOMAIN = "vlmc.kernels"
THREADS = "vlmc.threads"  # session config entry; without it, the CPUs of the affinity mask
SWITCH, TILES = "VLMC_KERNELS", "VLMC_TILES"  # of the environment

INTERFACE = 9  # kInterface of kernels.h; the version of the domain
# What builds call beside the operators; a library from before one was there has the same interface.
_CALLED = ("vlmc_quantize_stored", "vlmc_round_blocks", "vlmc_linear_bfloat16")
_FOLDER = Path(__file__).parent
_OFF = ("off", "0", "no", "false")
_ON = ("on", "1", "yes", "true")
# The sources compiled for instructions that CPUs have, the fastest first: a word for SWITCH, the
# library's name, and what they are called.
_LEVELS = (("avx512", "kernels", "AVX-512 VNNI"), ("avx2", "kernels_avx2", "AVX2"))


def library() -> Path | None:
    """The kernels for ``register_custom_ops_library``; None where they can't serve.

    They serve where the package was installed with a C++ compiler, on a CPU with AVX-512 VNNI or
    AVX2, unless the environment says ``VLMC_KERNELS=off``; with ``VLMC_KERNELS=avx2`` those for
    AVX2. See ``why_not``.

    Raises:
        VlmcError: The environment says something else there, or of ``VLMC_TILES``.
    """
    return _found()[0]


def why_not() -> str:
    """Why ``library`` is None; empty where it is not."""
    return _found()[1]


def instructions() -> str:
    """What the kernels compute with, where they serve: tiles too where CPU and system have them."""
    return _instructions(str(library()))


@cache
def _instructions(library: str) -> str:
    [name] = [called for _, name, called in _LEVELS if Path(library).name.startswith(f"{name}.")]
    return f"{name} and AMX" if ctypes.CDLL(library).vlmc_kernels_tiles() else name


def _found() -> tuple[Path | None, str]:
    """What serves, or why nothing does."""
    word = _said(SWITCH, *(level[0] for level in _LEVELS))
    _said(TILES)
    if word in _OFF:
        return None, f"{SWITCH}={os.environ[SWITCH]}"
    why = "not compiled when vlmc was installed: is there a C++ compiler?"
    asked = [level for level in _LEVELS if level[0] == word] or _LEVELS
    for _, name, called in asked:
        if file := _built(_FOLDER, name):
            if why := _fault(file):
                return None, why
            if _supported(file):
                return file, ""
            why = f"this CPU has no {called}"
    return None, why


def _said(name: str, *more: str) -> str:
    """The word of a switch in the environment, or an empty one."""
    given = os.environ.get(name, "")
    word = given.lower()
    if word and word not in (*_ON, *_OFF, *more):
        raise VlmcError(
            f"'{given}' says neither on nor off",
            at=f"{name} in the environment",
            allowed=("on", "off", *more),
            got=word,
        )
    return word


@cache  # a build asks for each piece of a weight
def _built(folder: Path, name: str) -> Path | None:
    files = (folder / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
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
    except (OSError, AttributeError) as error:  # not a library; not this one
        return f"{file.name} cannot be loaded: {error}"
    return ""


@cache
def _supported(file: Path) -> bool:
    return bool(ctypes.CDLL(str(file)).vlmc_kernels_supported())


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
