"""The storage formats of weights: one row each, by the name recipes and backends use."""

from vlmc.quantizers import block_panels, fp16, fp32, int4_block, int8_block, int8_channel
from vlmc.quantizers.spec import Loss, Part, Quantizer

QUANTIZERS: dict[str, Quantizer] = {
    "fp32": fp32.QUANTIZER,
    "fp16": fp16.QUANTIZER,
    "int8_channel": int8_channel.QUANTIZER,
    "int8_block": int8_block.QUANTIZER,
    "int8_panel": block_panels.INT8,
    "int4_block": int4_block.QUANTIZER,
    "int4_panel": block_panels.INT4,
}

__all__ = ["QUANTIZERS", "Loss", "Part", "Quantizer"]
