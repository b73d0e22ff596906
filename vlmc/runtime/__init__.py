"""Runs bundles, with nothing heavier than onnxruntime.

>>> from vlmc.runtime import load
>>> model = load("artifacts/llava-1.5-7b-int4")
>>> model.generate(prompt="What is this?", images=["cat.png"]).text
"""

from vlmc.runtime.model import Model, load
from vlmc.runtime.request import Answer, Request, Timings, Usage
from vlmc.runtime.sampling import Sampling, suggested_sampling
from vlmc.runtime.stream import AnswerStream

__all__ = [
    "Answer",
    "AnswerStream",
    "Model",
    "Request",
    "Sampling",
    "Timings",
    "Usage",
    "load",
    "suggested_sampling",
]
