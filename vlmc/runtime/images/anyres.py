"""``anyres``: a small picture of the whole, and tiles of a larger one (LLaVA-NeXT, OneVision)."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt, model_validator

from vlmc.bundle.manifest import TensorSpec
from vlmc.runtime.images import corners, pixels
from vlmc.runtime.images.pixels import Color, Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import Array, PreparedImage
from vlmc.schema import Frozen


class Options(Frozen):
    """Constants of a LLaVA-NeXT or LLaVA-OneVision processor, and of the tower it feeds.

    Attributes:
        side: Height and width of a tile in pixels.
        rows: Feature rows along a side of a tile.
        resolutions: Sizes (height, width) a picture may be tiled at, multiples of ``side``.
        resample: The filter of every resize.
        on_white: Lay transparent pictures on white (``do_convert_rgb``).
        values: Levels to floats.
        most_tiles: Features of a picture much larger than so many tiles are shrunk to them;
            None: never.
        background: Where a prompt shows several pictures, each is one tile, on a square of this
            color; None: each is cut as if it were alone.
        alone: The picture is the only one of its prompt.
    """

    side: PositiveInt
    rows: PositiveInt
    resolutions: tuple[tuple[PositiveInt, PositiveInt], ...]
    resample: Resample
    on_white: bool
    values: Values
    most_tiles: PositiveInt | None = None
    background: Color | None = None
    alone: bool = True

    @property
    def cut(self) -> bool:
        """Whether a picture is cut into tiles at all."""
        return self.alone or self.background is None

    @model_validator(mode="after")
    def _tiled(self) -> "Options":
        if not self.resolutions:
            raise ValueError("no resolution is given")
        for height, width in self.resolutions:
            if height % self.side or width % self.side:
                raise ValueError(
                    f"{height} x {width} pixels cannot be cut into tiles of {self.side}"
                )
            if height * width > pixels.MAX_PIXELS:
                raise ValueError(f"{height} x {width} pixels are too many")
        return self


def resolution(height: int, width: int, options: Options) -> tuple[int, int]:
    """The size (height, width) that keeps most of a picture and wastes least.

    Mirrors ``select_best_resolution`` of ``transformers.image_processing_utils``.
    """

    def merit(target: tuple[int, int]) -> tuple[int, int]:
        scale = min(target[1] / width, target[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - target[0] * target[1]

    return max(options.resolutions, key=merit)  # the first of equals


def kept_grid(height: int, width: int, options: Options) -> tuple[int, int, slice, slice]:
    """The grid of a picture's tiles, and the feature rows and columns that show the picture.

    Mirrors ``get_anyres_image_grid_shape`` and ``unpad_image`` of
    ``transformers.models.llava_next``, whose padding may differ from the pixels' by a row.

    Returns:
        Tiles down, tiles across, and slices of the joined features down and across.
    """
    target = resolution(height, width, options)
    down, across = target[0] // options.side, target[1] // options.side
    rows, columns = down * options.rows, across * options.rows
    above = beside = 0
    if width / height > columns / rows:
        above = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        beside = (columns - int(round(width * (rows / height), 7))) // 2
    return down, across, slice(above, rows - above), slice(beside, columns - beside)


def shrunk(rows: int, columns: int, options: Options) -> tuple[int, int]:
    """The size that ``rows`` x ``columns`` features are brought to; mirrors ``anyres_max_N``."""
    if options.most_tiles is None:
        return rows, columns
    ratio = math.sqrt(rows * columns / (options.most_tiles * options.rows**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def tokens(height: int, width: int, options: Options) -> int:
    """Placeholder tokens: the whole picture's, then each kept row's with its line break."""
    if not options.cut:
        side = max(height, width)
        pixels.check_target(height, width, side, side)
        return options.rows**2 + 1
    _, _, kept_rows, kept_columns = kept_grid(height, width, options)
    rows, columns = kept_rows.stop - kept_rows.start, kept_columns.stop - kept_columns.start
    rows, columns = shrunk(rows, columns, options)
    return options.rows**2 + rows * (columns + 1)


def least_tokens(options: Options) -> int:
    """At most the placeholder tokens of any picture: all that may be unpadded is."""
    sizes = [(h // options.side, w // options.side) for h, w in options.resolutions]
    grids = [(down * options.rows, across * options.rows) for down, across in sizes]
    narrow = [min(h % 2 * (w + 1), h * (w % 2 + 1)) for h, w in grids]
    return options.rows**2 + min(narrow)


def packing(
    height: int, width: int, options: Options
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which feature rows the placeholders of a picture show, and how much of each.

    Mirrors ``pack_image_features`` of ``LlavaNextModel`` and ``LlavaOnevisionModel``: the whole
    picture first, then the tiles joined, unpadded to the picture's shape, shrunk where they are
    too many, with a line break after each row.

    Returns:
        Rows int64 [tokens, 4], indices into the features of all tiles, one tile after the other,
        and the line break's embedding after them; their shares float32 [tokens, 4], of which the
        first alone counts where nothing is shrunk.
    """
    side = options.rows
    whole = np.arange(side * side)
    if not options.cut:
        return corners.alone(np.append(whole, whole.size))
    down, across, kept_rows, kept_columns = kept_grid(height, width, options)
    tiles = np.arange(down * across * side * side).reshape(down, across, side, side) + whole.size
    joined = tiles.transpose(0, 2, 1, 3).reshape(down * side, across * side)
    kept = joined[kept_rows, kept_columns]
    down, across = shrunk(kept.shape[0], kept.shape[1], options)
    rows, shares = corners.bilinear(kept, down, across)
    breaks, one = corners.alone(np.full((down, 1), whole.size + tiles.size))
    rows = np.concatenate([rows, breaks], axis=1).reshape(-1, 4)
    shares = np.concatenate([shares, one], axis=1).reshape(-1, 4)
    first, one = corners.alone(whole)
    return np.concatenate([first, rows]), np.concatenate([one, shares])


def _padded(image: Image.Image, height: int, width: int, resample: Resample) -> Image.Image:
    """The picture as large as fits, centered on black of that size.

    Mirrors ``get_patch_output_size`` and ``LlavaNextImageProcessorPil._pad_for_patching``.
    """
    scale_down, scale_across = height / image.height, width / image.width
    if scale_across < scale_down:
        fitted = min(math.ceil(image.height * scale_across), height), width
    else:
        fitted = height, min(math.ceil(image.width * scale_down), width)
    padded = Image.new("RGB", (width, height))
    place = (width - fitted[1]) // 2, (height - fitted[0]) // 2
    padded.paste(pixels.resized(image, *fitted, resample), place)
    return padded


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program.

    Equals ``LlavaNextImageProcessorPil`` and ``LlavaOnevisionImageProcessorPil`` bit for bit.

    Returns:
        ``pixel_values`` float32 [tiles, 3, side, side], the whole picture first, and ``packing``
        int64 [tokens]; or, where features may be shrunk, ``packing`` int64 [tokens, 4] and
        ``shares`` float32 [tokens, 4].

    Raises:
        VlmcError: The picture is too narrow to be laid on a square.
    """
    height, width = image.height, image.width
    count = tokens(height, width, options)
    image = pixels.rgb(image, on_white=options.on_white)
    if not options.cut and options.background is not None:
        image = pixels.squared(image, options.background)
    picture = _tiles(image, options)
    values = np.empty((len(picture), 3, options.side, options.side), dtype=np.float32)
    for channel, levels in enumerate(pixels.table(options.values)):
        values[:, channel] = levels[picture[..., channel]]
    rows, shares = packing(height, width, options)
    if options.most_tiles is None:
        packed: dict[str, Array] = {"packing": np.ascontiguousarray(rows[:, 0])}
    else:
        packed = {"packing": rows, "shares": shares}
    return PreparedImage({"pixel_values": values, **packed}, count, (1, 1, count))


def _tiles(image: Image.Image, options: Options) -> NDArray[np.uint8]:
    """The whole picture and, where it is cut, its tiles: uint8 [tiles, side, side, 3]."""
    side = options.side
    whole = np.asarray(pixels.resized(image, side, side, options.resample))[None]
    if not options.cut:
        return whole
    target = resolution(image.height, image.width, options)
    large = np.asarray(_padded(image, *target, options.resample))
    down, across = target[0] // side, target[1] // side
    tiles = large.reshape(down, side, across, side, 3).transpose(0, 2, 1, 3, 4)
    return np.concatenate([whole, tiles.reshape(-1, side, side, 3)])


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``tiles`` and ``image_tokens`` are free."""
    shape = ("tiles", 3, options.side, options.side)
    pixel_values = TensorSpec(name="pixel_values", dtype="float32", shape=shape)
    if options.most_tiles is None:
        return pixel_values, TensorSpec(name="packing", dtype="int64", shape=("image_tokens",))
    return (
        pixel_values,
        TensorSpec(name="packing", dtype="int64", shape=("image_tokens", 4)),
        TensorSpec(name="shares", dtype="float32", shape=("image_tokens", 4)),
    )


def among(options: Options, count: int) -> Options:
    """The constants for the pictures of a prompt that shows ``count``."""
    return options.model_copy(update={"alone": count == 1})


ANYRES = Geometry("anyres", Options, prepare, tokens, inputs, among)
