"""``native_grid``: near its own size, cut into patches (Qwen2-VL and its successors)."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt, model_validator

from vlmc.bundle.manifest import TensorSpec
from vlmc.errors import VlmcError
from vlmc.runtime.images import pixels
from vlmc.runtime.images.pixels import Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen

MAX_ASPECT = 200
"""Longer side over shorter side; ``smart_resize`` refuses more."""


class Options(Frozen):
    """Constants of ``Qwen2VLImageProcessor``; sizes in pixels, ``merge_size`` in patches.

    ``window``: the side, in patches, of the squares inside which the tower's layers attend; None
    where no layer does.
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
    window: PositiveInt | None = None

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

    Mirrors ``smart_resize`` of ``transformers.models.qwen2_vl.image_processing_pil_qwen2_vl``.

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
    longer, shorter = max(height, width), min(height, width)
    if longer / shorter > MAX_ASPECT:
        raise VlmcError(
            f"a picture of {pixels.size_text(height, width)} is too narrow for this model: one "
            f"side is {longer / shorter:.4g} times the other; the limit is {MAX_ASPECT}"
        )
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > options.max_pixels:
        beta = math.sqrt((height * width) / options.max_pixels)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif new_height * new_width < options.min_pixels:
        beta = math.sqrt(options.min_pixels / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    pixels.check_target(height, width, new_height, new_width)
    return new_height, new_width


def tokens(height: int, width: int, options: Options) -> int:
    """Placeholder tokens of a picture: its merged patches."""
    new_height, new_width = target_size(height, width, options)
    factor = options.patch_size * options.merge_size
    return (new_height // factor) * (new_width // factor)


def patchify(picture: NDArray[np.uint8], options: Options) -> NDArray[np.float32]:
    """Patches of ``picture`` uint8 [H, W, 3] in merged-block order, float32 [P, 3*T*ps*ps].

    Mirrors ``Qwen2VLImageProcessorPil.patchify``: the four patches of a merged block are
    neighbours, and the one frame fills all T places in time.
    """
    size, merge, frames = options.patch_size, options.merge_size, options.temporal_patch_size
    rows, columns = picture.shape[0] // size // merge, picture.shape[1] // size // merge
    blocks = picture.reshape(rows, merge, size, columns, merge, size, 3)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)  # row, column, in-block y, x, channel, y, x
    levels = pixels.table(options.values)
    patches = np.empty((*blocks.shape[:5], frames, size, size), dtype=np.float32)
    for channel in range(3):
        patches[:, :, :, :, channel] = levels[channel][blocks[:, :, :, :, channel, None]]
    return patches.reshape(rows * columns * merge * merge, 3 * frames * size * size)


def positions(rows: int, columns: int, merge: int) -> NDArray[np.int64]:
    """Place (h, w) of every patch in the picture, int64 [rows * columns, 2], merged-block order.

    ``rows`` and ``columns`` count patches. Mirrors ``get_vision_position_ids`` of
    ``transformers.vision_utils``.
    """
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    blocks = places.reshape(rows // merge, merge, columns // merge, merge, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(rows * columns, 2).astype(np.int64)


def windows(places: NDArray[np.int64], side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The windows of ``side`` x ``side`` patches that a picture's patches fall in.

    Windows at the right and lower edge may hold fewer patches than others: their last slots are
    empty. Mirrors ``get_vision_window_index`` of ``transformers.vision_utils``: the filled slots,
    read in a row, are its order, and the windows its segments.

    Args:
        places: As ``positions`` gives them, [P, 2].
        side: In patches, a multiple of the merged patch's.

    Returns:
        The patch in each slot, int64 [windows, side * side], -1 where there is none; and the slot
        of each patch, counted through all windows, int64 [P].
    """
    rows, columns = (places // side).T
    window = rows * (columns.max() + 1) + columns
    order = np.argsort(window, kind="stable")
    counts = np.bincount(window)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    slots = np.full((len(counts), side * side), -1, dtype=np.int64)
    slot_of = np.empty(len(places), dtype=np.int64)
    slot_of[order] = window[order] * side * side + np.arange(len(places)) - before
    slots.reshape(-1)[slot_of] = np.arange(len(places))
    return slots, slot_of


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program; equals ``Qwen2VLImageProcessorPil`` bit for bit.

    Returns:
        ``pixel_values`` float32 [P, 3*T*ps*ps] and ``patch_positions`` int64 [P, 2], and where the
        tower has windows ``window_patches`` and ``patch_slots``, see ``windows``; the grid is in
        merged patches.

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
        "pixel_values": patchify(np.asarray(picture), options),
        "patch_positions": places,
    }
    if options.window is not None:
        tensors["window_patches"], tensors["patch_slots"] = windows(places, options.window)
    return PreparedImage(
        tensors=tensors,
        tokens=grid[1] * grid[2],
        grid=grid,
    )


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``patches`` and ``windows`` are free."""
    row = 3 * options.temporal_patch_size * options.patch_size**2
    found = (
        TensorSpec(name="pixel_values", dtype="float32", shape=("patches", row)),
        TensorSpec(name="patch_positions", dtype="int64", shape=("patches", 2)),
    )
    if options.window is None:
        return found
    return (
        *found,
        TensorSpec(name="window_patches", dtype="int64", shape=("windows", options.window**2)),
        TensorSpec(name="patch_slots", dtype="int64", shape=("patches",)),
    )


NATIVE_GRID = Geometry("native_grid", Options, prepare, tokens, inputs)
