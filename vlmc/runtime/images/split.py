"""``split``: cut into square tiles, with the whole picture after them (Idefics3, SmolVLM)."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt

from vlmc.bundle.manifest import TensorSpec
from vlmc.runtime.images import pixels
from vlmc.runtime.images.fixed import Exact
from vlmc.runtime.images.pixels import Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen

MAX_EDGE = 4096
"""No picture is resized to a longer edge; ``MAX_IMAGE_SIZE`` of transformers."""


class Longest(Frozen):
    """The longer side gets this length, up to ``MAX_EDGE``."""

    longest: PositiveInt


class Options(Frozen):
    """Constants of ``Idefics3ImageProcessor``; ``tile`` in pixels, ``tokens`` of one tile."""

    tile: PositiveInt
    tokens: PositiveInt
    split: bool
    resize: Longest | Exact | None
    resample: Resample
    on_white: bool
    values: Values


def _first_size(height: int, width: int, options: Options) -> tuple[int, int]:
    """Mirrors ``get_resize_output_image_size`` of ``image_processing_pil_idefics3``."""
    if options.resize is None:
        return height, width
    if isinstance(options.resize, Exact):
        return options.resize.height, options.resize.width
    longest, ratio = options.resize.longest, width / height
    if width >= height:
        height, width = int(longest / ratio), longest
        height += height % 2
    else:
        height, width = longest, int(longest * ratio)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if width >= height and width > MAX_EDGE:
        height, width = int(MAX_EDGE / ratio), MAX_EDGE
    elif height > width and height > MAX_EDGE:
        height, width = MAX_EDGE, int(MAX_EDGE * ratio)
    return max(height, 1), max(width, 1)


def _cut_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Whole tiles; mirrors ``resize_for_vision_encoder`` of ``Idefics3ImageProcessorPil``."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        height = math.ceil(int(width / ratio) / side) * side
    else:
        height = math.ceil(height / side) * side
        width = math.ceil(int(height * ratio) / side) * side
    return height, width


def sizes(height: int, width: int, options: Options) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sizes (height, width) a picture gets: the first, and the one that is cut into tiles.

    Raises:
        VlmcError: The picture is too narrow to be resized.
    """
    first = _first_size(height, width, options)
    pixels.check_target(height, width, *first)
    side = options.tile
    cut = _cut_size(*first, side) if options.split else (side, side)
    pixels.check_target(height, width, *cut)
    return first, cut


def tile_grid(height: int, width: int, options: Options) -> tuple[int, int]:
    """Rows and columns of tiles; 0 and 0 where the whole picture is the only tile."""
    _, (height, width) = sizes(height, width, options)
    rows, columns = height // options.tile, width // options.tile
    return (rows, columns) if rows * columns > 1 else (0, 0)


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture: those of its tiles and of the whole."""
    rows, columns = tile_grid(height, width, options)
    return (rows * columns + 1) * options.tokens


def _tiles(picture: Image.Image, side: int) -> NDArray[np.uint8]:
    """uint8 [rows * columns, S, S, 3], row by row."""
    rows, columns = picture.height // side, picture.width // side
    blocks = np.asarray(picture).reshape(rows, side, columns, side, 3)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(rows * columns, side, side, 3)


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program; equals ``Idefics3ImageProcessorPil`` bit for bit.

    All tiles are full, so transformers' ``pixel_attention_mask`` of them is all ones.

    Returns:
        ``pixel_values`` float32 [tiles, 3, S, S]: the tiles row by row, then the whole picture.

    Raises:
        VlmcError: The picture is too narrow.
    """
    first, cut = sizes(image.height, image.width, options)
    rows, columns = tile_grid(image.height, image.width, options)
    picture = pixels.rgb(image, on_white=options.on_white)
    # Two steps even where one would do: each rounds.
    for size in (first, cut):
        picture = pixels.resized(picture, *size, options.resample)
    frames = _tiles(picture, options.tile)
    if rows:
        whole = pixels.resized(picture, options.tile, options.tile, options.resample)
        frames = np.concatenate([frames, _tiles(whole, options.tile)])
    values = np.empty((len(frames), 3, options.tile, options.tile), dtype=np.float32)
    for channel, levels in enumerate(pixels.table(options.values)):
        values[:, channel] = levels[frames[..., channel]]
    count = len(frames) * options.tokens
    grid = (len(frames), 1, options.tokens)
    return PreparedImage({"pixel_values": values}, count, grid, tiles=(rows, columns))


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``tiles`` is free."""
    shape = ("tiles", 3, options.tile, options.tile)
    return (TensorSpec(name="pixel_values", dtype="float32", shape=shape),)


SPLIT = Geometry("split", Options, prepare, tokens, inputs)
