"""``native_grid``: near its own size, cut into patches (Qwen2-VL, its kin)."""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt, model_validator

from vlmc.bundle.manifest import TensorSpec
from vlmc.errors import VlmcError
from vlmc.runtime.images import pixels
from vlmc.runtime.images.patches import patchify, positions, windows
from vlmc.runtime.images.pixels import Resample, Values
from vlmc.runtime.images.position_table import PositionTable, spread, table_rows
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen

MAX_ASPECT = 200
"""Longer side over shorter side; ``smart_resize`` refuses more."""


class Options(Frozen):
    """Constants of ``Qwen2VLImageProcessor``; sizes in pixels, ``merge_size`` in patches.

    Attributes:
        frames: How often the bounds count a picture's pixels (GLM-4V: each place in time).
        enlarge: How a side shorter than a merged patch is brought to one before all else: both
            sides ``scaled`` alike (GLM-4V), or one ``side`` after the other (PaddleOCR-VL).
        window: The side, in patches, of the squares inside which the tower's layers attend; None
            where no layer does.
        table: The tower's learned positions, where it has them.
        spread: Positions along a side of a table of which a patch may take more than a few, as
            where it is shrunk over a coarse grid (Cosmos 3 Edge); such a tower is told no places.
        channels_last: Whether a pixel's channels are neighbours in a patch (Cosmos 3 Edge).
        centers: Say which patches are in the middle of each merged one (Video-LLaMA 3).
        raster: Say which patch lies where (LFM3-VL's convolutions).
        row_ends: The tower makes a row for the end of each row of merged patches, and one before
            and one behind all; it is told no places.
    """

    patch_size: PositiveInt
    temporal_patch_size: PositiveInt
    merge_size: PositiveInt
    resize: bool
    min_pixels: PositiveInt
    max_pixels: PositiveInt
    resample: Resample
    on_white: bool
    values: Values
    frames: PositiveInt = 1
    enlarge: Literal["scaled", "side"] | None = None
    window: PositiveInt | None = None
    table: PositionTable | None = None
    spread: PositiveInt | None = None
    channels_last: bool = False
    centers: bool = False
    raster: bool = False
    row_ends: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "Options":
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels ({self.min_pixels}) is larger than max_pixels ({self.max_pixels})"
            )
        if self.window is not None and self.window % self.merge_size:
            raise ValueError(
                f"a window of {self.window} patches cuts merged patches of {self.merge_size}"
            )
        return self


def target_size(height: int, width: int, options: Options) -> tuple[int, int]:
    """The size (height, width) in pixels at which a picture is cut into patches.

    Mirrors ``smart_resize`` of ``transformers.models.qwen2_vl.image_processing_pil_qwen2_vl``, and
    of ``glm4v``, ``cosmos3_edge`` and ``paddleocr_vl``.

    Raises:
        VlmcError: The picture is too narrow; or, where pictures are not resized, its sides are no
            multiples of a merged patch.
    """
    factor = options.patch_size * options.merge_size
    if not options.resize:
        if height % factor or width % factor:
            raise VlmcError(
                f"a picture of {pixels.size_text(height, width)} does not fit this model: "
                f"both sides must be multiples of {factor} pixels"
            )
        return height, width
    given = height, width
    if options.enlarge == "scaled" and min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if options.enlarge == "side" and height < factor:
        height, width = factor, round((width * factor) / height)
    if options.enlarge == "side" and width < factor:
        height, width = round((height * factor) / width), factor
    longer, shorter = max(height, width), min(height, width)
    if longer / shorter > MAX_ASPECT:
        raise VlmcError(
            f"a picture of {pixels.size_text(*given)} is too narrow for this model: one "
            f"side is {longer / shorter:.4g} times the other; the limit is {MAX_ASPECT}"
        )
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    frames = options.frames
    if frames * new_height * new_width > options.max_pixels:
        beta = math.sqrt((frames * height * width) / options.max_pixels)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif frames * new_height * new_width < options.min_pixels:
        beta = math.sqrt(options.min_pixels / (frames * height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    pixels.check_target(*given, new_height, new_width)
    return new_height, new_width


def tokens(height: int, width: int, options: Options) -> int:
    """Placeholder tokens of a picture: its merged patches, and the ends of its rows."""
    new_height, new_width = target_size(height, width, options)
    factor = options.patch_size * options.merge_size
    rows, columns = new_height // factor, new_width // factor
    return rows * (columns + 1) + 2 if options.row_ends else rows * columns


def packing(rows: int, columns: int) -> NDArray[np.int64]:
    """Which of the tower's rows each token takes, int64 [rows * (columns + 1) + 2].

    The rows of merged patches come first, then those of a row's end, of the start and of the end.
    """
    end = rows * columns
    grid = np.full((rows, columns + 1), end, dtype=np.int64)
    grid[:, :columns] = np.arange(end).reshape(rows, columns)
    return np.concatenate([[end + 1], grid.reshape(-1), [end + 2]])


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program; equals ``Qwen2VLImageProcessorPil`` bit for bit.

    Returns:
        ``pixel_values`` float32 [P, 3*T*ps*ps] and ``patch_positions`` int64 [P, 2]; where the
        tower has windows ``window_patches`` and ``patch_slots``, see ``windows``; where it has
        learned positions ``table_rows`` and ``table_weights``, see ``table_rows``, or
        ``table_weights`` alone, see ``spread``, in the place of ``patch_positions``; on demand
        ``center_patches``, see ``center_patches``, and ``grid_patches`` int64 [rows, columns], the
        patch at each place; where it makes rows for the ends of rows ``packing``, in the place of
        ``patch_positions``. The grid is in merged patches.

    Raises:
        VlmcError: The picture's size is refused, see ``target_size``.
    """
    height, width = target_size(image.height, image.width, options)
    picture = pixels.rgb(image, on_white=options.on_white)
    if options.resize:
        picture = pixels.resized(picture, height, width, options.resample)
    rows, columns = height // options.patch_size, width // options.patch_size
    grid = (1, rows // options.merge_size, columns // options.merge_size)
    places = positions(rows, columns, options.merge_size)
    tensors: dict[str, NDArray[Any]] = {
        "pixel_values": patchify(
            np.asarray(picture),
            options.patch_size,
            options.merge_size,
            options.temporal_patch_size,
            options.values,
            channels_last=options.channels_last,
        ),
    }
    if not options.row_ends and options.spread is None:
        tensors["patch_positions"] = places
    if options.window is not None:
        tensors["window_patches"], tensors["patch_slots"] = windows(places, options.window)
    if options.table is not None:
        mixed = table_rows(places, rows, columns, options.table)
        tensors["table_rows"], tensors["table_weights"] = mixed
    if options.spread is not None:
        tensors["table_weights"] = spread(places, rows, columns, options.spread)
    if options.centers:
        tensors["center_patches"] = center_patches(grid[1] * grid[2], options.merge_size)
    if options.raster:
        tensors["grid_patches"] = np.empty((rows, columns), dtype=np.int64)
        tensors["grid_patches"][places[:, 0], places[:, 1]] = np.arange(len(places))
    if options.row_ends:
        tensors["packing"] = packing(*grid[1:])
    return PreparedImage(tensors, tokens(image.height, image.width, options), grid)


def center_patches(tokens: int, merge: int) -> NDArray[np.int64]:
    """The patches in the middle of each merged one: int64 [tokens, 4], or [tokens, 1].

    Their mean is what ``torch.nn.functional.interpolate`` makes of a merged patch, bilinearly.
    """
    middle = (merge - 1) // 2
    along = np.arange(middle, middle + 2 - merge % 2)
    inside = (along[:, None] * merge + along[None, :]).reshape(1, -1)
    return np.arange(tokens, dtype=np.int64)[:, None] * merge**2 + inside


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; dimensions that are words are free."""
    row = 3 * options.temporal_patch_size * options.patch_size**2
    found = [
        TensorSpec(name="pixel_values", dtype="float32", shape=("patches", row)),
    ]
    if not options.row_ends and options.spread is None:
        found.append(TensorSpec(name="patch_positions", dtype="int64", shape=("patches", 2)))
    if options.window is not None:
        shape = ("windows", options.window**2)
        found.append(TensorSpec(name="window_patches", dtype="int64", shape=shape))
        found.append(TensorSpec(name="patch_slots", dtype="int64", shape=("patches",)))
    if options.table is not None:
        mixed = ("patches", options.table.taps**2)
        found.append(TensorSpec(name="table_rows", dtype="int64", shape=mixed))
        found.append(TensorSpec(name="table_weights", dtype="float32", shape=mixed))
    if options.spread is not None:
        shares = ("patches", options.spread**2)
        found.append(TensorSpec(name="table_weights", dtype="float32", shape=shares))
    if options.centers:
        middle = ("image_tokens", 1 if options.merge_size % 2 else 4)
        found.append(TensorSpec(name="center_patches", dtype="int64", shape=middle))
    if options.raster:
        found.append(TensorSpec(name="grid_patches", dtype="int64", shape=("rows", "columns")))
    if options.row_ends:
        found.append(TensorSpec(name="packing", dtype="int64", shape=("image_tokens",)))
    return tuple(found)


NATIVE_GRID = Geometry("native_grid", Options, prepare, tokens, inputs)
