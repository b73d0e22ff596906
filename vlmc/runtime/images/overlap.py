"""``overlap``: a small whole, then overlapping crops of a large one, pooled together (Molmo 2).

transformers has this for torchvision only; pictures are resized as torch does it.
"""

from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from vlmc.bundle.manifest import TensorSpec
from vlmc.runtime.images import pixels
from vlmc.runtime.images.pixels import Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.images.torch_bilinear import resized
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen


class Options(Frozen):
    """Constants of ``Molmo2ImageProcessor``; ``pool`` and margins in patches.

    Attributes:
        side: Of a crop, in pixels.
        patch_size: Of the tower, in pixels.
        max_tiles: The most crops of a picture, the whole not counted.
        margins: What a crop shares with the one before it, and with the one after it.
        pool: Rows and columns of patches that are pooled to a feature row.
        on_white: Lay transparent pictures on white (``do_convert_rgb``).
        values: Levels to floats.
    """

    side: PositiveInt
    patch_size: PositiveInt
    max_tiles: Annotated[int, Field(ge=1, le=256)]
    margins: tuple[NonNegativeInt, NonNegativeInt]
    pool: tuple[PositiveInt, PositiveInt]
    on_white: bool
    values: Values

    @model_validator(mode="after")
    def _usable(self) -> "Options":
        if self.side % self.patch_size:
            raise ValueError(f"a crop of {self.side} pixels cuts patches of {self.patch_size}")
        if self.side // self.patch_size <= sum(self.margins):
            raise ValueError(f"margins {list(self.margins)} leave nothing of a crop")
        return self


class Cut(NamedTuple):
    """How a picture is cut: rows and columns of crops, and of the two grids of feature rows."""

    rows: int
    columns: int
    whole: tuple[int, int]
    large: tuple[int, int]


def cut(height: int, width: int, options: Options) -> Cut:
    """Mirrors ``compute_crop_geometry`` and ``select_tiling``, in their float32."""
    step, shared = _window(options), sum(options.margins)
    margin = shared * options.patch_size
    numbers = range(1, options.max_tiles + 1)
    grids = [(rows, columns) for rows in numbers for columns in numbers]
    grids = [grid for grid in grids if grid[0] * grid[1] <= options.max_tiles]
    grids.sort(key=lambda grid: (grid[0] * grid[1], grid[0]))
    sizes = np.array(grids, np.float32) * np.float32(step * options.patch_size)
    with np.errstate(divide="ignore"):  # a picture that is all margin
        wanted = np.array([height - margin, width - margin], np.float32)
        scales = (sizes / wanted).min(axis=1)
    if (scales < 1).all():
        chosen = int(scales.argmax())
    else:
        chosen = int(np.where(scales < 1, np.float32(10e9), scales).argmin())
    rows, columns = grids[chosen]
    whole = options.side // options.patch_size
    return Cut(
        rows,
        columns,
        _pooled((whole, whole), options),
        _pooled((rows * step + shared, columns * step + shared), options),
    )


def _window(options: Options) -> int:
    """Patches from one crop to the next."""
    return options.side // options.patch_size - sum(options.margins)


def _pooled(grid: tuple[int, int], options: Options) -> tuple[int, int]:
    (high, wide), (down, across) = grid, options.pool
    return -(-high // down), -(-wide // across)


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture: of the small whole, then of the crops."""
    made = cut(height, width, options)
    return made.whole[0] * made.whole[1] + made.large[0] * made.large[1]


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program; equals ``Molmo2ImageProcessor``.

    Returns:
        ``pixel_values`` float32 [crops, patches, ps*ps*3], the whole first; ``token_patches``
        int64 [tokens, pool], the patches of each feature row, counted through all crops, -1 where
        there is none. Every row of feature rows but the last stands as a tile.
    """
    made = cut(image.height, image.width, options)
    picture = np.asarray(pixels.rgb(image, on_white=options.on_white))
    side, size, step = options.side, options.patch_size, _window(options)
    per, shared = side // size, sum(options.margins)
    high, wide = ((count * step + shared) * size for count in (made.rows, made.columns))
    canvas = resized(picture, high, wide)
    parts = [resized(picture, side, side)]
    for row in range(made.rows):
        for column in range(made.columns):
            top, left = row * step * size, column * step * size
            parts.append(canvas[top : top + side, left : left + side])
    levels = np.stack(parts).reshape(-1, per, size, per, size, 3).transpose(0, 1, 3, 2, 4, 5)
    values = np.empty(levels.shape, np.float32)
    for channel, floats in enumerate(pixels.table(options.values)):
        values[..., channel] = floats[levels[..., channel]]
    whole = _pool(np.arange(per * per).reshape(per, per), options)
    large = _pool(per * per + _places(made, options), options)
    rows = [made.whole[1]] * made.whole[0] + [made.large[1]] * made.large[0]
    return PreparedImage(
        tensors={
            "pixel_values": values.reshape(len(parts), per * per, size * size * 3),
            "token_patches": np.concatenate([whole, large]),
        },
        tokens=sum(rows),
        grid=(1, 1, sum(rows)),
        tiles=(len(rows) - 1, 1),
        runs=tuple(rows),
    )


def _places(made: Cut, options: Options) -> NDArray[np.int64]:
    """For each patch of the large picture, its number among the patches of the crops.

    In a margin that two crops share, up to the first margin the earlier one's patch counts.
    """
    per, step = options.side // options.patch_size, _window(options)
    before, _ = options.margins

    def along(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        at = np.arange(count * step + sum(options.margins))
        crop = np.clip((at - before) // step, 0, count - 1)
        return crop, at - crop * step

    (row, y), (column, x) = along(made.rows), along(made.columns)
    crops = row[:, None] * made.columns + column[None]
    return (crops * per + y[:, None]) * per + x[None]


def _pool(places: NDArray[np.int64], options: Options) -> NDArray[np.int64]:
    """Patches of each feature row, [rows * columns, pool]; mirrors ``arange_for_pooling``."""
    down, across = options.pool
    lacks = [-size % pool for size, pool in zip(places.shape, options.pool, strict=True)]
    pads = [(lack // 2, (lack + 1) // 2) for lack in lacks]
    padded = np.pad(places, pads, constant_values=-1)
    rows, columns = padded.shape[0] // down, padded.shape[1] // across
    blocks = padded.reshape(rows, down, columns, across).transpose(0, 2, 1, 3)
    return blocks.reshape(rows * columns, down * across).astype(np.int64)


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``crops`` and ``tokens`` are free."""
    patches, row = (options.side // options.patch_size) ** 2, 3 * options.patch_size**2
    pool = options.pool[0] * options.pool[1]
    return (
        TensorSpec(name="pixel_values", dtype="float32", shape=("crops", patches, row)),
        TensorSpec(name="token_patches", dtype="int64", shape=("tokens", pool)),
    )


OVERLAP = Geometry("overlap", Options, prepare, tokens, inputs)
