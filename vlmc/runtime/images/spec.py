"""What a geometry is: the way a picture becomes the inputs of a vision program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlmc.bundle.manifest import TensorSpec
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen


@dataclass(frozen=True)
class Geometry:
    """One row of ``GEOMETRIES``; ``Any`` below is the row's own ``options``.

    Attributes:
        name: The key of the row, and ``ImageSpec.geometry``.
        options: The schema of ``ImageSpec.options``.
        prepare: ``(picture, options) -> PreparedImage``.
        tokens: ``(height, width, options) -> placeholder tokens``, with no pixels needed; raises
            the same ``VlmcError`` as ``prepare`` for a size it refuses.
        inputs: ``options -> inputs of the vision program`` for one image.
        among: ``(options, count) -> options`` for the pictures of a prompt that shows ``count``.
        together: ``pictures -> pictures`` of one prompt, prepared one by one, where they bear on
            each other.
    """

    name: str
    options: type[Frozen]
    prepare: Callable[[Image.Image, Any], PreparedImage]
    tokens: Callable[[int, int, Any], int]
    inputs: Callable[[Any], tuple[TensorSpec, ...]]
    among: Callable[[Any, int], Any] = lambda options, count: options
    together: Callable[[Sequence[PreparedImage]], list[PreparedImage]] = list
