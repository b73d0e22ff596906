"""Weights as they are, in float32."""

import numpy as np

from vlmc.quantizers.spec import Array, Part, Quantizer


def parts(rows: int, columns: int, block: int) -> tuple[Part, ...]:
    """One float32 tensor ``[N, K]``."""
    return (Part("", "float32", (rows, columns)),)


def quantize(weight: Array, block: int) -> tuple[Array, ...]:
    """float32 ``[n, K]`` -> itself."""
    return (weight.astype(np.float32, copy=False),)


def restore(stored: tuple[Array, ...], columns: int, block: int) -> Array:
    """The stored tensor itself."""
    return stored[0]


QUANTIZER = Quantizer(name="fp32", bits=32, parts=parts, quantize=quantize, restore=restore)
