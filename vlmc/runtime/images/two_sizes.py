"""``two_sizes``: every picture as a large frame and a small one made of it (DeepSeek-VL 7B)."""

import numpy as np
from PIL import Image
from pydantic import PositiveInt

from vlmc.bundle.manifest import TensorSpec
from vlmc.runtime.images import fixed, pixels
from vlmc.runtime.images.pixels import Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen


class Options(Frozen):
    """Constants of ``DeepseekVLHybridImageProcessor``.

    Attributes:
        large: The steps to the large frame, and how many feature rows a picture has.
        side: Height and width of the small one, in pixels.
        resample: The filter that makes the small frame of the large one.
        values: The small one's levels to floats.
    """

    large: fixed.Options
    side: PositiveInt
    resample: Resample
    values: Values


def tokens(height: int, width: int, options: Options) -> int:
    """Placeholder tokens of a picture: always the same number."""
    return fixed.tokens(height, width, options.large)


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program.

    Equals ``DeepseekVLHybridImageProcessorPil`` bit for bit.

    Returns:
        ``pixel_values`` float32 [1, 3, side, side], the small frame, and
        ``high_res_pixel_values`` float32 [1, 3, H, W], the large one.

    Raises:
        VlmcError: The picture is too narrow.
    """
    large = fixed.levels(image, options.large)
    small = pixels.resized(Image.fromarray(large), options.side, options.side, options.resample)
    tensors = {
        "pixel_values": pixels.floats(np.asarray(small), options.values)[None],
        "high_res_pixel_values": pixels.floats(large, options.large.values)[None],
    }
    count = options.large.tokens
    return PreparedImage({**tensors}, count, (1, 1, count))


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; nothing is free."""
    (large,) = fixed.inputs(options.large)
    shape = (1, 3, options.side, options.side)
    return (
        TensorSpec(name="pixel_values", dtype="float32", shape=shape),
        large.model_copy(update={"name": "high_res_pixel_values"}),
    )


TWO_SIZES = Geometry("two_sizes", Options, prepare, tokens, inputs)
