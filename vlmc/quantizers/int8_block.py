"""8 bits, one scale per block of columns, row by row: for tables that are looked up."""

import numpy as np

from vlmc.quantizers import compiled
from vlmc.quantizers.blocks import as_stored, count, join, split, usable
from vlmc.quantizers.spec import Array, Part, Quantizer

_ZERO = 128  # the operator's zero point where none is given


def parts(rows: int, columns: int, block: int) -> tuple[Part, ...]:
    """Codes uint8 ``[N, blocks, block]`` around 128; scales float16 ``[N, blocks]``."""
    blocks = count(columns, block)
    return (
        Part("", "uint8", (rows, blocks, block)),
        Part(".scales", "float16", (rows, blocks)),
    )


def quantize(weight: Array, block: int) -> tuple[Array, ...]:
    """float32 ``[n, K]`` -> uint8 ``[n, blocks, block]``, scales float16 ``[n, blocks]``."""
    cut = split(weight, block)
    scale = as_stored(np.abs(cut).max(axis=2) / np.float32(127))
    codes = cut / usable(scale.astype(np.float32))[:, :, None]
    np.rint(codes, out=codes)
    np.clip(codes, -127, 127, out=codes)
    codes += _ZERO
    return codes.astype(np.uint8), scale


def restore(stored: tuple[Array, ...], columns: int, block: int) -> Array:
    """uint8 ``[n, blocks, block]`` and scales ``[n, blocks]`` -> float32 ``[n, columns]``."""
    codes, scale = stored
    values = codes.astype(np.float32)
    values -= _ZERO
    values *= scale.astype(np.float32)[:, :, None]
    return join(values, columns)


QUANTIZER = Quantizer(
    name="int8_block",
    bits=8,
    parts=parts,
    quantize=quantize,
    restore=restore,
    measured=compiled.blocks(parts),
)
