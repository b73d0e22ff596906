"""The engines a bundle can be compiled for; a new one is one folder and one row."""

from vlmc.backends.onnxruntime.measure import hold_alike, measure, slower
from vlmc.backends.onnxruntime.native import instructions, library
from vlmc.backends.onnxruntime.programs import KERNELS_SUFFIX, lower
from vlmc.backends.onnxruntime.session import open_session
from vlmc.backends.spec import Backend, OpenOptions, Product, Session, SessionError

BACKENDS: dict[str, Backend] = {
    "onnxruntime": Backend(
        name="onnxruntime",
        open=open_session,
        lower=lower,
        measure=measure,
        hold_alike=hold_alike,
        slower=slower,
        kernels=lambda: instructions() if library() else "",
        accepts=frozenset(
            {"fp32", "fp16", "int8_channel", "int8_block", "int8_panel", "int4_block", "int4_panel"}
        ),
        head_multiple=8,
        kernels_suffix=KERNELS_SUFFIX,
    ),
}

__all__ = ["BACKENDS", "Backend", "OpenOptions", "Product", "Session", "SessionError"]
