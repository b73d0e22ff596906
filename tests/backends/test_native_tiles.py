"""Products by tiles (AMX) have the bits of those by vectors, whatever their sizes."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.backends.attention import CPU
from tests.backends.kernels import with_kernels
from tests.backends.test_native_groups import made, session
from vlmc.backends.onnxruntime import native

ROWS = (6, 7, 16, 17, 32, 49, 103)
# Operators, their products, kind of weights, bits, inner size; 1,030 of it are 16 tiles and a bit.
OPERATORS = [
    ("LinearPanelsx3", 3, "Panels", 8, 1030),
    ("LinearBlockPanelsx2", 2, "BlockPanels", 4, 200),
    ("ActivatedPanels", 1, "Panels", 8, 64),
    ("GatedPanels", 2, "Panels", 8, 130),
    ("GatedBlockPanels", 2, "BlockPanels", 4, 96),
]
WIDTHS = (231, 33, 64)


def in_use():
    """Whether this process multiplies tiles."""
    return native.instructions() == "AVX-512 VNNI and AMX"


def can():
    """Whether the CPU has tiles, and the system lets this process use them."""
    request, tiles = 0x1023, 18  # arch_prctl's ARCH_REQ_XCOMP_PERM, XTILEDATA
    has = {"amx_tile", "amx_int8", "amx_bf16"} <= set(CPU)
    return has and ctypes.CDLL(None).syscall(158, request, tiles) == 0


def answers():
    """Of every operator, for every number of rows; and where codes are more than a cache keeps."""
    found = {}
    for op, count, kind, bits, k in OPERATORS:
        gated = not op.startswith("Linear")
        widths = [WIDTHS[0]] * count if gated else WIDTHS[:count]
        settings = {"K": k} | ({"bits": bits, "block_size": 32} if bits == 4 else {})
        settings |= {"gate": 3} if gated else {}
        weights = made(kind, bits, widths, absent=("bias",), k=k)
        run = session(op, kind, weights, 1 if gated else count, 2, k=k, **settings)
        for m in ROWS + ((1300,) if k == 1030 else ()):
            x = np.random.default_rng(m).standard_normal((1, m, k)).astype(np.float32)
            for at, y in enumerate(run.run(None, {"x": x})):
                found[f"{op} {m} {at}"] = y
    return found


@with_kernels
def test_the_bits_of_vectors(tmp_path):
    file = tmp_path / "answers.npz"
    words = [sys.executable, "-c", f"import {__name__} as t; t.save({str(file)!r})"]
    subprocess.run(words, env=os.environ | {"VLMC_TILES": "off"}, check=True, cwd=Path.cwd())
    assert in_use() == can()
    here = answers()
    with np.load(file) as there:
        assert not there["in_use"]
        assert sorted(there.files) == sorted([*here, "in_use"])
        for name, y in here.items():
            assert np.array_equal(y, there[name]), name


def save(file):
    """Answers of a process that has no tiles."""
    np.savez(file, in_use=in_use(), **answers())
