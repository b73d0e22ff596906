"""``naflex``: a picture near its own size, or square tiles of a large one and a small whole (LFM2).

transformers has this for torchvision only; pictures are resized as torch does it.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveFloat, PositiveInt, model_validator

from vlmc.bundle.manifest import TensorSpec
from vlmc.runtime.images import pixels, torch_resize
from vlmc.runtime.images.patches import positions
from vlmc.runtime.images.pixels import RGB, Resample
from vlmc.runtime.images.position_table import spread
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen


class Options(Frozen):
    """Constants of ``Lfm2VlImageProcessor`` and of the tower; sizes in pixels or patches.

    Attributes:
        patch_size: Of the tower, in pixels.
        merge_size: Patches along a side of a feature row.
        min_tokens: Feature rows of the smallest picture.
        max_tokens: Of the largest that is no tile.
        tolerance: How many times larger a picture must be to be cut into tiles.
        tile: The side of a tile in pixels; None: pictures are never cut.
        min_tiles: The fewest tiles.
        max_tiles: The most.
        whole: Whether the whole picture follows its tiles.
        resample: The filter of every resize.
        on_white: Lay transparent pictures on white.
        mean: Subtracted from 8-bit levels.
        std: Divides them then.
        side: Positions along a side of the tower's table of positions.
    """

    patch_size: PositiveInt
    merge_size: PositiveInt
    min_tokens: PositiveInt
    max_tokens: PositiveInt
    tolerance: PositiveFloat
    tile: PositiveInt | None
    min_tiles: PositiveInt
    max_tiles: PositiveInt
    whole: bool
    resample: Resample
    on_white: bool
    mean: RGB
    std: RGB
    side: PositiveInt

    @model_validator(mode="after")
    def _usable(self) -> "Options":
        if self.resample not in torch_resize.FILTERS:
            raise ValueError(f"resample is one of {', '.join(torch_resize.FILTERS)} here")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) are more than {self.max_tokens}")
        if self.tile is not None and self.tile % (self.patch_size * self.merge_size):
            raise ValueError(f"a tile of {self.tile} pixels cuts merged patches")
        if self.tile is not None and self.min_tiles > self.max_tiles:
            raise ValueError(f"{self.min_tiles} to {self.max_tiles} tiles are no grid")
        return self


def target_size(height: int, width: int, options: Options) -> tuple[int, int]:
    """The size (height, width) of a picture that is not cut, or of the whole beside its tiles.

    Mirrors ``Lfm2VlImageProcessor.smart_resize``.
    """
    factor = options.patch_size * options.merge_size
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    least, most = options.min_tokens * factor**2, options.max_tokens * factor**2
    if new_height * new_width > most:
        beta = math.sqrt((height * width) / most)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif new_height * new_width < least:
        beta = math.sqrt(least / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    pixels.check_target(height, width, new_height, new_width)
    return new_height, new_width


def tile_grid(height: int, width: int, options: Options) -> tuple[int, int]:
    """Rows and columns of tiles; 0 and 0 where the picture is not cut.

    Mirrors ``_is_image_too_large``, ``_target_ratios`` and ``find_closest_aspect_ratio``. A grid of
    one tile has no marks: it is the picture itself, where transformers can take it at all.
    """
    if options.tile is None:
        return 0, 0
    size, factor = options.patch_size, options.patch_size * options.merge_size
    tall, wide = (max(size, round(side / factor) * factor) for side in (height, width))
    if tall * wide <= options.max_tokens * factor**2 * options.tolerance:
        return 0, 0
    least, most = options.min_tiles, options.max_tiles
    # Equal areas stay in the order of the set, as there.
    grids = {
        (columns, rows)
        for count in range(least, most + 1)
        for columns in range(1, count + 1)
        for rows in range(1, count + 1)
        if least <= columns * rows <= most
    }
    best, nearest = (1, 1), math.inf
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        if distance < nearest:
            best, nearest = (columns, rows), distance
        elif distance == nearest and height * width > 0.5 * options.tile**2 * columns * rows:
            best = columns, rows
    return (0, 0) if best == (1, 1) else (best[1], best[0])


def cuts(height: int, width: int, options: Options) -> tuple[tuple[int, int], ...]:
    """Rows and columns of patches of each tile of a picture, and of the whole."""
    size = options.patch_size
    rows, columns = tile_grid(height, width, options)
    tall, wide = target_size(height, width, options)
    whole = ((tall // size, wide // size),) if options.whole or not rows else ()
    side = (options.tile or 0) // size
    return ((side, side),) * (rows * columns) + whole


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture: the merged patches of its tiles and of the whole."""
    return sum(rows * columns for rows, columns in cuts(height, width, options)) // (
        options.merge_size**2
    )


def patch_values(picture: NDArray[np.uint8], options: Options) -> NDArray[np.float32]:
    """Patches of ``picture`` uint8 [H, W, 3] in merged-block order, float32 [P, ps*ps*3].

    Mirrors ``rescale_and_normalize``, which does both at once, and ``convert_image_to_patches``:
    channels lie innermost.
    """
    size, merge = options.patch_size, options.merge_size
    rows, columns = picture.shape[0] // size // merge, picture.shape[1] // size // merge
    blocks = picture.reshape(rows, merge, size, columns, merge, size, 3)
    blocks = blocks.transpose(0, 3, 1, 4, 2, 5, 6)
    mean, std = (np.array(values, dtype=np.float32) for values in (options.mean, options.std))
    values = (blocks.astype(np.float32) - mean) / std
    return values.reshape(rows * columns * merge * merge, size * size * 3)


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program.

    Returns:
        ``pixel_values`` float32 [P, ps*ps*3], the patches of every tile and of the whole, in
        merged-block order; ``table_weights`` float32 [P, side**2], each patch's share of every
        position of the table; ``tile_patches`` int64 [tiles, slots], the patches of each (-1:
        none), and ``patch_slots`` int64 [P], the slot of each.

    Raises:
        VlmcError: A size that no picture can have.
    """
    rows, columns = tile_grid(image.height, image.width, options)
    shapes = cuts(image.height, image.width, options)
    picture = np.asarray(pixels.rgb(image, on_white=options.on_white))
    size, side, merge = options.patch_size, options.tile or 0, options.merge_size
    parts: list[NDArray[np.uint8]] = []
    if rows:
        large = torch_resize.resized(picture, rows * side, columns * side, options.resample)
        tiles = large.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
        parts += list(tiles.reshape(-1, side, side, 3))
    for tall, wide in shapes[len(parts) :]:
        parts.append(torch_resize.resized(picture, tall * size, wide * size, options.resample))
    places = [positions(*shape, merge) for shape in shapes]
    weights = [spread(at, *shape, options.side) for at, shape in zip(places, shapes, strict=True)]
    counts = [tall * wide for tall, wide in shapes]
    slots = np.full((len(counts), max(counts)), -1, dtype=np.int64)
    filled = np.arange(max(counts)) < np.array(counts)[:, None]
    slots[filled] = np.arange(sum(counts))
    runs = tuple(count // merge**2 for count in counts)
    return PreparedImage(
        tensors={
            "pixel_values": np.concatenate([patch_values(part, options) for part in parts]),
            "table_weights": np.concatenate(weights),
            "tile_patches": slots,
            "patch_slots": np.flatnonzero(filled),
        },
        tokens=sum(runs),
        grid=(1, 1, sum(runs)),
        tiles=(rows, columns),
        runs=runs if options.whole or not rows else (*runs, 0),
    )


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``patches``, ``tiles`` and ``slots`` are free."""
    return (
        TensorSpec(
            name="pixel_values", dtype="float32", shape=("patches", 3 * options.patch_size**2)
        ),
        TensorSpec(name="table_weights", dtype="float32", shape=("patches", options.side**2)),
        TensorSpec(name="tile_patches", dtype="int64", shape=("tiles", "slots")),
        TensorSpec(name="patch_slots", dtype="int64", shape=("patches",)),
    )


NAFLEX = Geometry("naflex", Options, prepare, tokens, inputs)
