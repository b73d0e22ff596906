"""``slices``: a whole picture, and a large one's slices at the tower's own scale (MiniCPM-V)."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt

from vlmc.bundle.manifest import TensorSpec
from vlmc.runtime.images import pixels
from vlmc.runtime.images.patches import patchify, positions
from vlmc.runtime.images.pixels import Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen

Size = tuple[int, int]

# A merged patch of 4 x 4: its four windows one after the other, each row by row.
_NESTED = np.array([0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15])


class Options(Frozen):
    """Constants of ``MiniCPMV4_6ImageProcessor``; sizes in pixels, ``merge_size`` in patches.

    Attributes:
        patch_size: Of the tower.
        merge_size: Patches along a side of a feature row; 4: merged by two twice.
        scale: The side of the square whose area the whole and each slice have, nearly.
        max_tiles: The most slices; 1: no picture is cut.
        resample: The filter of every resize.
        on_white: Lay transparent pictures on white.
        values: Levels to floats.
    """

    patch_size: PositiveInt
    merge_size: PositiveInt
    scale: PositiveInt
    max_tiles: PositiveInt
    resample: Resample
    on_white: bool
    values: Values


def slice_grid(height: int, width: int, options: Options) -> Size:
    """Rows and columns of slices; 0 and 0 where the picture is not cut.

    Mirrors ``MiniCPMV4_6ImageProcessorPil.get_sliced_grid``.
    """
    most = options.max_tiles
    count = min(math.ceil(width * height / (options.scale * options.scale)), most)
    if count <= 1:
        return 0, 0
    wanted = math.log(width / height)
    best, nearest = (1, 1), math.inf
    for slices in (count - 1, count, count + 1):
        if slices == 1 or slices > most:
            continue
        for rows in (rows for rows in range(1, slices + 1) if slices % rows == 0):
            distance = abs(wanted - math.log(slices // rows / rows))
            if distance < nearest or (distance == nearest and rows > best[0]):
                best, nearest = (rows, slices // rows), distance
    return best


def _near(length: float, step: int) -> int:
    """The nearest multiple of ``step``; mirrors ``ensure_divide``."""
    return max(round(length / step) * step, step)


def _target(height: float, width: float, options: Options, *, enlarge: bool) -> Size:
    """Mirrors ``find_best_resize``."""
    scale, factor = options.scale, options.patch_size * options.merge_size
    if height * width > scale * scale or enlarge:
        ratio = width / height
        height = int(scale / math.sqrt(ratio))
        width = int(height * ratio)
    return _near(height, factor), _near(width, factor)


def sizes(height: int, width: int, options: Options) -> tuple[Size, Size, Size]:
    """The whole's size, the grid of slices (0 and 0: none), and the size of one slice.

    Mirrors ``_preprocess`` and ``get_refine_size``; sizes are heights and widths in pixels.

    Raises:
        VlmcError: The picture is so narrow that it would grow beyond all bounds.
    """
    rows, columns = slice_grid(height, width, options)
    whole = _target(height, width, options, enlarge=not rows)
    pixels.check_target(height, width, *whole)
    if not rows:
        return whole, (0, 0), (0, 0)
    tall, wide = _near(height, rows), _near(width, columns)
    each = _target(tall / rows, wide / columns, options, enlarge=True)
    pixels.check_target(height, width, each[0] * rows, each[1] * columns)
    return whole, (rows, columns), each


def _shapes(height: int, width: int, options: Options) -> tuple[Size, ...]:
    """Rows and columns of features of the whole, then of each slice."""
    whole, (rows, columns), each = sizes(height, width, options)
    factor = options.patch_size * options.merge_size
    parts = (whole, *((each,) * (rows * columns)))
    return tuple((tall // factor, wide // factor) for tall, wide in parts)


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture: the merged patches of the whole and of its slices."""
    return sum(tall * wide for tall, wide in _shapes(height, width, options))


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program; pixels equal ``MiniCPMV4_6ImageProcessorPil``.

    Returns:
        ``pixel_values`` float32 [P, 3*ps*ps], the patches of the whole and of every slice, those of
        a feature row together; ``patch_places`` float32 [P, 2], where in its slice each begins, as
        shares of height and width; ``tile_patches`` int64 [tiles, slots], the patches of each (-1:
        none), and ``patch_slots`` int64 [P], the slot of each.

    Raises:
        VlmcError: As ``sizes``.
    """
    whole, (rows, columns), (tall, wide) = sizes(image.height, image.width, options)
    picture = pixels.rgb(image, on_white=options.on_white)
    parts = [np.asarray(pixels.resized(picture, *whole, options.resample))]
    if rows:
        large = pixels.resized(picture, tall * rows, wide * columns, options.resample)
        cut = np.asarray(large).reshape(rows, tall, columns, wide, 3).swapaxes(1, 2)
        parts += list(cut.reshape(-1, tall, wide, 3))
    counts = np.array([part.shape[0] * part.shape[1] for part in parts]) // options.patch_size**2
    slots = np.full((len(parts), int(counts.max())), -1, dtype=np.int64)
    filled = np.arange(slots.shape[1]) < counts[:, None]
    slots[filled] = np.arange(counts.sum())
    shapes = _shapes(image.height, image.width, options)
    runs = tuple(down * across for down, across in shapes)
    return PreparedImage(
        tensors={
            "pixel_values": np.concatenate([_patches(part, options) for part in parts]),
            "patch_places": np.concatenate([_places(part, options) for part in parts]),
            "tile_patches": slots,
            "patch_slots": np.flatnonzero(filled),
        },
        tokens=sum(runs),
        grid=(1, 1, sum(runs)),
        tiles=(rows, columns),
        runs=runs,
        shapes=shapes,
    )


def _patches(part: NDArray[np.uint8], options: Options) -> NDArray[np.float32]:
    made = patchify(part, options.patch_size, options.merge_size, 1, options.values)
    return _nested(made, options)


def _places(part: NDArray[np.uint8], options: Options) -> NDArray[np.float32]:
    """Mirrors ``get_vision_nearest_position_ids`` up to its buckets, [P, 2]."""
    shape = part.shape[0] // options.patch_size, part.shape[1] // options.patch_size
    places = positions(*shape, options.merge_size).astype(np.float32)
    places /= np.array(shape, dtype=np.float32)
    return _nested(places, options)


def _nested(patches: NDArray[np.float32], options: Options) -> NDArray[np.float32]:
    """Patches [P, N] in merged-block order; where merged twice, those of each window together."""
    if options.merge_size != 4:
        return patches
    return patches.reshape(-1, 16, patches.shape[1])[:, _NESTED].reshape(patches.shape)


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``patches``, ``tiles`` and ``slots`` are free."""
    return (
        TensorSpec(
            name="pixel_values", dtype="float32", shape=("patches", 3 * options.patch_size**2)
        ),
        TensorSpec(name="patch_places", dtype="float32", shape=("patches", 2)),
        TensorSpec(name="tile_patches", dtype="int64", shape=("tiles", "slots")),
        TensorSpec(name="patch_slots", dtype="int64", shape=("patches",)),
    )


SLICES = Geometry("slices", Options, prepare, tokens, inputs)
