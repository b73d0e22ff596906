"""8 bits, one scale per output channel, in the order our kernels multiply them."""

import math

import numpy as np

from vlmc.quantizers.blocks import usable
from vlmc.quantizers.spec import Array, Part, Quantizer

# Channels of a panel, and inputs of one of them side by side: what vpdpbusd adds up at once.
PANEL = 64
DEPTH = 4


def parts(rows: int, columns: int, block: int) -> tuple[Part, ...]:
    """int8 ``[ceil(N / 64), ceil(K / 4), 64, 4]``, zeros behind the last; scales float32 ``[N]``.

    Channel ``64 p + c`` has its input ``4 g + i`` at ``[p, g, c, i]``.
    """
    shape = math.ceil(rows / PANEL), math.ceil(columns / DEPTH), PANEL, DEPTH
    return Part("", "int8", shape, rows_each=PANEL), Part(".scales", "float32", (rows,))


def quantize(weight: Array, block: int) -> tuple[Array, ...]:
    """float32 ``[n, K]`` -> panels of int8 within -127..127, scales float32 ``[n]``."""
    scale = usable(np.maximum(weight.max(axis=1), -weight.min(axis=1)) / np.float32(127))
    codes = weight / scale[:, None]
    np.rint(codes, out=codes)
    # Rounding of the scale itself could carry the largest weight past 127.
    np.clip(codes, -127, 127, out=codes)
    rows, columns = weight.shape
    panels, groups, *_ = parts(rows, columns, block)[0].shape
    room = np.zeros((panels * PANEL, groups * DEPTH), np.int8)
    room[:rows, :columns] = codes
    turned = room.view(np.int32).reshape(panels, PANEL, groups).transpose(0, 2, 1)
    packed = np.ascontiguousarray(turned).view(np.int8)
    return packed.reshape(panels, groups, PANEL, DEPTH), scale


def restore(stored: tuple[Array, ...], columns: int, block: int) -> Array:
    """Panels of int8 and scales ``[n]`` -> float32 ``[n, K]``."""
    packed, scale = stored
    panels, groups = packed.shape[:2]
    codes = packed.transpose(0, 2, 1, 3).reshape(panels * PANEL, groups * DEPTH)
    codes = codes[: len(scale), :columns]
    restored: Array = np.multiply(codes, scale[:, None], dtype=np.float32)
    return restored


QUANTIZER = Quantizer(name="int8_channel", bits=8, parts=parts, quantize=quantize, restore=restore)
