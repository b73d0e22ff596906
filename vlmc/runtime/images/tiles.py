"""``tiles``: a grid of square cuts and the whole picture (InternVL, Aya Vision, Ovis 2, ...)."""

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from vlmc.bundle.manifest import TensorSpec
from vlmc.runtime.images import pixels, torch_resize
from vlmc.runtime.images.pixels import Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen

Tiles = Annotated[int, Field(ge=1, le=256)]


class Dense(Frozen):
    """Which pages are cut into more tiles than others (Granite Docling's spread rule).

    Attributes:
        tiles: The most for them.
        scale: They would shrink to less than this share of their width; 0: or not.
        wider: Their width is more than this many times their height; 0: or not.
        widest: And no more than this many times; 0: or more.
    """

    tiles: Tiles
    scale: NonNegativeFloat
    wider: NonNegativeFloat
    widest: NonNegativeFloat


class Options(Frozen):
    """Constants of the image processors of GOT-OCR 2, Cohere2 Vision and Ovis 2, cropping.

    Attributes:
        height: Of a tile, in pixels.
        width: The same.
        fit: How a grid is chosen: by its shape, by how far the picture is scaled, or by how much
            of the picture its tiles keep.
        min_tiles: The fewest tiles of a grid, the whole picture not counted.
        max_tiles: The most.
        longest: The most on a side; None: as many as there may be.
        dense: The pages that may have more; None: no page.
        tokens: Feature rows of the vision program for each tile.
        marks: Its further rows for the tokens around a picture's tiles.
        whole_first: The whole picture stands before the grid's tiles, not behind them.
        resample: The filter of every resize.
        as_torch: Resize as torch does, not as Pillow.
        on_white: Lay transparent pictures on white (``do_convert_rgb``).
        values: Levels to floats.
    """

    height: PositiveInt
    width: PositiveInt
    fit: Literal["shape", "scale", "cover"] = "shape"
    min_tiles: Tiles
    max_tiles: Tiles
    longest: Tiles | None = None
    dense: Dense | None = None
    tokens: PositiveInt
    marks: NonNegativeInt = 0
    whole_first: bool = False
    resample: Resample
    as_torch: bool = False
    on_white: bool
    values: Values

    @model_validator(mode="after")
    def _ordered(self) -> "Options":
        if self.min_tiles > self.max_tiles:
            raise ValueError(
                f"min_tiles ({self.min_tiles}) is larger than max_tiles ({self.max_tiles})"
            )
        if self.as_torch and self.resample not in torch_resize.FILTERS:
            raise ValueError(f"resample is one of {', '.join(torch_resize.FILTERS)} here")
        return self


def grid(height: int, width: int, options: Options) -> tuple[int, int]:
    """The grid (rows, columns) a picture is cut by."""
    most = options.max_tiles
    if options.dense is not None and _is_dense(height, width, options, options.dense):
        most = options.dense.tiles
    return _best(height, width, options, most)


def _best(height: int, width: int, options: Options, most: int) -> tuple[int, int]:
    """The grid (rows, columns) of ``most`` tiles or fewer."""
    longest = min(most, options.longest or most)
    grids = sorted(
        [
            (columns, rows)
            for columns in range(1, longest + 1)
            for rows in range(1, min(most // columns, longest) + 1)
            if columns * rows >= options.min_tiles
        ],
        key=math.prod,
    )
    columns, rows = _FITS[options.fit](height, width, grids, options)
    return rows, columns


def _is_dense(height: int, width: int, options: Options, dense: Dense) -> bool:
    """Mirrors ``get_tile_budget`` of ``image_processing_pil_granite_docling``."""
    aspect = width / height
    if (dense.wider and not aspect > dense.wider) or (dense.widest and aspect > dense.widest):
        return False
    if not dense.scale:
        return dense.wider > 0
    _, columns = _best(height, width, options, options.max_tiles)
    return columns * options.width / width < dense.scale


def _least_scaled(
    height: int, width: int, grids: list[tuple[int, int]], options: Options
) -> tuple[int, int]:
    """The grid the picture grows least to fill; where it must shrink, the one it shrinks least to.

    Mirrors ``get_optimal_tiled_canvas`` of
    ``transformers.models.cohere2_vision.image_processing_cohere2_vision``.
    """
    scales = [
        min(columns * options.height / width, rows * options.height / height)
        for columns, rows in grids
    ]
    if max(scales) < 1:
        return grids[scales.index(max(scales))]
    return grids[scales.index(min(scale for scale in scales if scale >= 1))]


def _nearest_shape(
    height: int, width: int, grids: list[tuple[int, int]], options: Options
) -> tuple[int, int]:
    """The grid whose shape is nearest to the picture's.

    Mirrors ``get_optimal_tiled_canvas`` of
    ``transformers.models.got_ocr2.image_processing_pil_got_ocr2``: of grids as near as each other
    the larger one, unless the picture has less than half its pixels.
    """
    aspect, area = width / height, width * height
    best, nearest = (1, 1), math.inf
    for columns, rows in grids:
        distance = abs(aspect - columns / rows)
        # In this order: the product is rounded in the same places.
        half = 0.5 * options.height * options.width * columns * rows
        if distance < nearest or (distance == nearest and area > half):
            best, nearest = (columns, rows), distance
    return best


_COVERED = 0.9


def _covering(
    height: int, width: int, grids: list[tuple[int, int]], options: Options
) -> tuple[int, int]:
    """The smallest grid whose tiles keep nine tenths of the picture; else the one that keeps most.

    Mirrors ``get_min_tile_covering_grid`` of
    ``transformers.models.ovis2.image_processing_pil_ovis2``, which weighs each grid turned: as
    many rows as it will have columns.
    """
    kept = [
        sum(
            _kept(high, wide, options.height)
            for high in _cut_sizes(height, columns)
            for wide in _cut_sizes(width, rows)
        )
        / (width * height)
        for columns, rows in grids
    ]
    enough = [at for at, share in enumerate(kept) if share > _COVERED]
    if enough:
        return grids[min(enough, key=lambda at: (math.prod(grids[at]), -kept[at]))]
    return grids[min(range(len(grids)), key=lambda at: (-kept[at], math.prod(grids[at])))]


def _cut_sizes(size: int, count: int) -> list[int]:
    """Lengths of a side's cuts; the last takes what is left."""
    each = size // count
    return [each] * (count - 1) + [size - each * (count - 1)]


def _kept(height: int, width: int, side: int) -> float:
    """Pixels of a cut, shrunk until its longer side fits a tile's."""
    longer, shorter = max(height, width), min(height, width)
    return shorter / longer * side * side if longer > side else shorter * longer


_FITS = {"shape": _nearest_shape, "scale": _least_scaled, "cover": _covering}


def count(height: int, width: int, options: Options) -> int:
    """Tiles the vision program sees of a picture."""
    rows, columns = grid(height, width, options)
    pixels.check_target(height, width, rows * options.height, columns * options.width)
    return with_whole(rows * columns)


def with_whole(cuts: int) -> int:
    """Tiles of a grid of that many, the thumbnail counted: one tile is the whole already."""
    return cuts + (cuts > 1)


def tokens(height: int, width: int, options: Options) -> int:
    """Placeholder tokens of a picture."""
    return count(height, width, options) * options.tokens


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program.

    Equals ``GotOcr2ImageProcessorPil`` and ``Ovis2ImageProcessorPil`` bit for bit, and with
    ``as_torch`` what ``Cohere2VisionImageProcessor`` makes with torchvision.

    Returns:
        ``pixel_values`` float32 [T, 3, H, W]: the grid's tiles row by row, then the whole picture,
        or that first.

    Raises:
        VlmcError: The picture would grow beyond all bounds.
    """
    tiles = count(image.height, image.width, options)
    rows, columns = grid(image.height, image.width, options)
    high, wide = options.height, options.width
    picture = pixels.rgb(image, on_white=options.on_white)
    canvas = _resized(picture, rows * high, columns * wide, options)
    levels = np.empty((tiles, high, wide, 3), dtype=np.uint8)
    cut = canvas.reshape(rows, high, columns, wide, 3).transpose(0, 2, 1, 3, 4)
    first = 1 if tiles > 1 and options.whole_first else 0
    levels[first : first + rows * columns] = cut.reshape(-1, high, wide, 3)
    if tiles > 1:
        levels[first - 1] = _resized(picture, high, wide, options)
    values = np.empty((tiles, 3, high, wide), dtype=np.float32)
    for channel, table in enumerate(pixels.table(options.values)):
        values[:, channel] = table[levels[..., channel]]
    made = tiles * options.tokens
    cuts = (rows, columns) if tiles > 1 else (0, 0)
    tensors = {"pixel_values": values}
    return PreparedImage(tensors, made, (1, 1, made), tiles=cuts, marks=options.marks)


def _resized(picture: Image.Image, height: int, width: int, options: Options) -> NDArray[np.uint8]:
    if options.as_torch:
        return torch_resize.resized(np.asarray(picture), height, width, options.resample)
    return np.asarray(pixels.resized(picture, height, width, options.resample))


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``tiles`` is free."""
    shape = ("tiles", 3, options.height, options.width)
    return (TensorSpec(name="pixel_values", dtype="float32", shape=shape),)


TILES = Geometry("tiles", Options, prepare, tokens, inputs)
