"""``token_budget``: as large as a budget of feature rows allows, proportions kept (Gemma 4)."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt, model_validator

from vlmc.bundle.manifest import TensorSpec
from vlmc.errors import VlmcError
from vlmc.runtime.images import pixels, torch_resize
from vlmc.runtime.images.patches import positions
from vlmc.runtime.images.pixels import Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen


class Options(Frozen):
    """Constants of ``Gemma4ImageProcessor`` or ``Gemma4UnifiedImageProcessor``; sizes in pixels.

    Attributes:
        patch_size: Of the tower.
        merge_size: Patches along a side of a feature row.
        max_tokens: Feature rows of a picture, at most.
        resize: Whether pictures are resized at all.
        side: Positions along each axis of the tower's table of positions.
        as_torch: Whether pictures are resized as torch does it.
    """

    patch_size: PositiveInt
    merge_size: PositiveInt
    max_tokens: PositiveInt
    resize: bool
    resample: Resample
    on_white: bool
    values: Values
    side: PositiveInt
    as_torch: bool = False

    @model_validator(mode="after")
    def _filtered(self) -> "Options":
        if self.as_torch and self.resample not in torch_resize.FILTERS:
            raise ValueError(f"resample is one of {', '.join(torch_resize.FILTERS)} here")
        return self


def target_size(height: int, width: int, options: Options) -> tuple[int, int]:
    """The size (height, width) in pixels at which a picture is cut into patches.

    Mirrors ``get_aspect_ratio_preserving_size`` of
    ``transformers.models.gemma4.image_processing_pil_gemma4``.

    Raises:
        VlmcError: Pictures are not resized, and the sides are no multiples of a merged patch; or
            there are more patches along a side than the tower has positions.
    """
    factor = options.patch_size * options.merge_size
    new_height, new_width = height, width
    if options.resize:
        patches = options.max_tokens * options.merge_size**2
        scale = math.sqrt(patches * options.patch_size**2 / (height * width))
        rows, columns = math.floor(scale * height / factor), math.floor(scale * width / factor)
        if rows == 0:
            rows, columns = 1, min(width // height, options.max_tokens)
        elif columns == 0:
            rows, columns = min(height // width, options.max_tokens), 1
        new_height, new_width = rows * factor, columns * factor
        pixels.check_target(height, width, new_height, new_width)
    elif height % factor or width % factor:
        raise VlmcError(
            f"a picture of {pixels.size_text(height, width)} does not fit this model: "
            f"both sides must be multiples of {factor} pixels"
        )
    if max(new_height, new_width) > options.side * options.patch_size:
        raise VlmcError(
            f"a picture of {pixels.size_text(height, width)} is too narrow for this model: "
            f"it has {max(new_height, new_width) // options.patch_size} patches along a side; the "
            f"limit is {options.side}"
        )
    return new_height, new_width


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture: its merged patches."""
    new_height, new_width = target_size(height, width, options)
    return new_height * new_width // (options.patch_size * options.merge_size) ** 2


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program; equals ``Gemma4ImageProcessorPil`` bit for bit.

    With ``as_torch`` it equals ``Gemma4UnifiedImageProcessor`` on the resizing of bytes that
    torchvision has for processors with AVX2.

    Returns:
        ``pixel_values`` float32 [P, ps*ps*3], channels innermost, and ``patch_positions`` int64
        [P, 2], row and column, both in merged-block order; nothing is padded. The grid is in
        merged patches.

    Raises:
        VlmcError: The picture's size is refused, see ``target_size``.
    """
    height, width = target_size(image.height, image.width, options)
    picture = pixels.rgb(image, on_white=options.on_white)
    if options.as_torch:
        levels = torch_resize.resized(np.asarray(picture), height, width, options.resample)
    else:
        if (picture.height, picture.width) != (height, width):
            picture = pixels.resized(picture, height, width, options.resample)
        levels = np.asarray(picture)
    size, merge = options.patch_size, options.merge_size
    rows, columns = height // size // merge, width // size // merge
    return PreparedImage(
        tensors={
            "pixel_values": _patches(levels, size, merge, options.values),
            "patch_positions": positions(rows * merge, columns * merge, merge),
        },
        tokens=rows * columns,
        grid=(1, rows, columns),
    )


def _patches(
    picture: NDArray[np.uint8], size: int, merge: int, values: Values
) -> NDArray[np.float32]:
    """Patches of ``picture`` uint8 [H, W, 3] in merged-block order, float32 [P, ps*ps*3]."""
    rows, columns = picture.shape[0] // size // merge, picture.shape[1] // size // merge
    blocks = picture.reshape(rows, merge, size, columns, merge, size, 3)
    blocks = blocks.transpose(0, 3, 1, 4, 2, 5, 6)
    levels = pixels.table(values)
    patches = np.empty(blocks.shape, dtype=np.float32)
    for channel in range(3):
        patches[..., channel] = levels[channel][blocks[..., channel]]
    return patches.reshape(rows * columns * merge * merge, size * size * 3)


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``patches`` is free."""
    row = 3 * options.patch_size**2
    return (
        TensorSpec(name="pixel_values", dtype="float32", shape=("patches", row)),
        TensorSpec(name="patch_positions", dtype="int64", shape=("patches", 2)),
    )


TOKEN_BUDGET = Geometry("token_budget", Options, prepare, tokens, inputs)
