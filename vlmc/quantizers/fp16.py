"""Weights in float16 halves; what does not fit is an error, never an infinity."""

import numpy as np

from vlmc.errors import VlmcError
from vlmc.quantizers.spec import Array, Part, Quantizer


def parts(rows: int, columns: int, block: int) -> tuple[Part, ...]:
    """One float16 tensor ``[N, K]``."""
    return (Part("", "float16", (rows, columns)),)


def quantize(weight: Array, block: int) -> tuple[Array, ...]:
    """float32 ``[n, K]`` -> float16 ``[n, K]``, to the nearest.

    Raises:
        VlmcError: A value lies beyond float16's largest, 65504.
    """
    with np.errstate(over="ignore"):
        halves = weight.astype(np.float16)
    if not np.isfinite(halves).all():
        raise VlmcError(
            f"a weight of {np.abs(weight).max():g} does not fit float16 (at most 65504)",
            hint="store it in fp32",
        )
    return (halves,)


def restore(stored: tuple[Array, ...], columns: int, block: int) -> Array:
    """float16 ``[n, K]`` -> float32, exactly."""
    return stored[0].astype(np.float32)


QUANTIZER = Quantizer(name="fp16", bits=16, parts=parts, quantize=quantize, restore=restore)
