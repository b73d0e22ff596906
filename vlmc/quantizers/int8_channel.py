"""8 bits, one scale per output channel: what onnxruntime's ``MatMulIntegerToFloat`` multiplies."""

import numpy as np

from vlmc.quantizers.blocks import usable
from vlmc.quantizers.spec import Array, Part, Quantizer


def parts(rows: int, columns: int, block: int) -> tuple[Part, ...]:
    """The weight transposed, int8 ``[K, N]``, as the operator's B; scales float32 ``[N]``."""
    return (
        Part("", "int8", (columns, rows), row_axis=1),
        Part(".scales", "float32", (rows,)),
    )


def quantize(weight: Array, block: int) -> tuple[Array, ...]:
    """float32 ``[n, K]`` -> int8 ``[K, n]`` within -127..127, scales float32 ``[n]``."""
    scale = usable(np.maximum(weight.max(axis=1), -weight.min(axis=1)) / np.float32(127))
    codes = weight / scale[:, None]
    np.rint(codes, out=codes)
    # Rounding of the scale itself could carry the largest weight past 127.
    np.clip(codes, -127, 127, out=codes)
    return codes.astype(np.int8).T, scale


def restore(stored: tuple[Array, ...], columns: int, block: int) -> Array:
    """int8 ``[K, n]`` and scales ``[n]`` -> float32 ``[n, K]``."""
    codes, scale = stored
    restored: Array = np.multiply(codes.T, scale[:, None], dtype=np.float32)
    return restored


QUANTIZER = Quantizer(name="int8_channel", bits=8, parts=parts, quantize=quantize, restore=restore)
