"""``fixed``: every picture becomes one frame of one size (CLIP, SigLIP, LLaVA, ViT)."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt, model_validator

from vlmc.bundle.manifest import TensorSpec
from vlmc.errors import VlmcError
from vlmc.runtime.images import pixels
from vlmc.runtime.images.pixels import Color, Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen


class Exact(Frozen):
    """This size, whatever the picture's shape."""

    height: PositiveInt
    width: PositiveInt


class Edge(Frozen):
    """The shorter side gets this length, unless the longer one would pass ``longest``."""

    shortest: PositiveInt
    longest: PositiveInt | None = None


class Within(Frozen):
    """As large as these bounds allow."""

    max_height: PositiveInt
    max_width: PositiveInt


class Longest(Frozen):
    """The longer side gets this length; no side gets less than ``least`` pixels."""

    longest: PositiveInt
    least: PositiveInt


class Options(Frozen):
    """Constants of a processor, its steps in the order they run; None leaves a step out.

    Attributes:
        tokens: Feature rows of the vision program, the same for every picture.
        on_white: Lay transparent pictures on white (``do_convert_rgb``).
        square: Center the picture on a square of this color (LLaVA's ``do_pad``).
        resize: The new size.
        resample: The filter of ``resize``.
        boxed: Center the resized picture on a square of this color (Janus' ``do_pad``).
        crop: Cut the center out; black where the picture is smaller.
        values: Levels to floats.
        pad: Fill up to this size with zeros, below and to the right.
    """

    tokens: PositiveInt
    on_white: bool
    square: Color | None
    resize: Exact | Edge | Within | Longest | None
    resample: Resample
    boxed: Color | None = None
    crop: Exact | None
    values: Values
    pad: Exact | None

    @model_validator(mode="after")
    def _one_size(self) -> "Options":
        if frame(self) is None:
            raise ValueError(
                "pictures of different shapes would keep different sizes; "
                "this geometry needs one: resize to height and width, or crop"
            )
        return self


def frame(options: Options) -> Exact | None:
    """The size of every prepared picture; None where it depends on the picture."""
    if options.pad is not None:
        return options.pad
    if options.crop is not None:
        return options.crop
    if isinstance(options.resize, Exact):
        return options.resize
    if options.square is not None and isinstance(options.resize, Edge):
        side = min(options.resize.shortest, options.resize.longest or options.resize.shortest)
        return Exact(height=side, width=side)
    if options.boxed is not None and isinstance(options.resize, Longest):
        side = max(options.resize.longest, options.resize.least)
        return Exact(height=side, width=side)
    return None


def _edge_size(height: int, width: int, edge: Edge) -> tuple[int, int]:
    """Mirrors ``get_size_with_aspect_ratio`` and ``get_resize_output_image_size``."""
    shorter, longer = min(height, width), max(height, width)
    if edge.longest is None:
        size, long = edge.shortest, int(edge.shortest * longer / shorter)
        return (long, size) if width <= height else (size, long)
    exact: float = edge.shortest
    if longer / shorter * edge.shortest > edge.longest:
        exact = edge.longest * shorter / longer
    size = round(exact)
    if shorter == size:
        return height, width
    if width < height:
        return int(exact * height / width), size
    return size, int(exact * width / height)


def _resized(height: int, width: int, options: Options) -> tuple[int, int]:
    """The size (height, width) after ``square`` and ``resize``.

    Raises:
        VlmcError: No sensible picture can be made of that shape.
    """
    before = height, width
    if options.square is not None:
        height = width = max(height, width)
        pixels.check_target(*before, height, width)
    match options.resize:
        case Exact(height=new_height, width=new_width):
            height, width = new_height, new_width
        case Edge() as edge:
            height, width = _edge_size(height, width, edge)
        case Within(max_height=most_high, max_width=most_wide):
            scale = min(most_high / height, most_wide / width)
            height, width = int(height * scale), int(width * scale)
        case Longest(longest=longest, least=least):
            scale = longest / max(height, width)
            height, width = max(round(height * scale), least), max(round(width * scale), least)
    pixels.check_target(*before, height, width)
    after = options.crop or Exact(height=height, width=width)
    if options.pad and (after.height > options.pad.height or after.width > options.pad.width):
        raise VlmcError(
            f"a picture of {pixels.size_text(*before)} becomes "
            f"{pixels.size_text(after.height, after.width)}; "
            f"the limit is {pixels.size_text(options.pad.height, options.pad.width)}"
        )
    return height, width


def center_crop(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The center of ``picture`` uint8 [H, W, 3], as [height, width, 3], zeros where it ends.

    Mirrors ``center_crop`` of ``transformers.image_transforms``, which rounds the other way when
    it pads.
    """
    kept: list[slice] = []
    places: list[slice] = []
    for size, target in zip(picture.shape[:2], (height, width), strict=True):
        length = min(size, target)
        start, place = (size - length) // 2, math.ceil((target - length) / 2)
        kept.append(slice(start, start + length))
        places.append(slice(place, place + length))
    center = np.zeros((height, width, 3), dtype=np.uint8)
    center[tuple(places)] = picture[tuple(kept)]
    return center


def tokens(height: int, width: int, options: Options) -> int:
    """Placeholder tokens of a picture: always the same number."""
    _resized(height, width, options)
    return options.tokens


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program.

    Equals transformers' ``CLIPImageProcessorPil`` and the other classes of ``FIXED_CLASSES``
    (``vlmc/families/image_processors.py``) bit for bit.

    Returns:
        ``pixel_values`` float32 [1, 3, H, W].

    Raises:
        VlmcError: The picture is too narrow, or larger than ``pad``.
    """
    picture = levels(image, options)
    filled = options.pad or Exact(height=picture.shape[0], width=picture.shape[1])
    values = np.zeros((1, 3, filled.height, filled.width), dtype=np.float32)
    values[0, :, : picture.shape[0], : picture.shape[1]] = pixels.floats(picture, options.values)
    return PreparedImage({"pixel_values": values}, options.tokens, (1, 1, options.tokens))


def levels(image: Image.Image, options: Options) -> NDArray[np.uint8]:
    """One picture before its levels become floats and it is filled up: uint8 [H, W, 3].

    Raises:
        VlmcError: As ``prepare``.
    """
    height, width = _resized(image.height, image.width, options)
    image = pixels.rgb(image, on_white=options.on_white)
    if options.square is not None:
        image = pixels.squared(image, options.square)
    if options.resize is not None:
        image = pixels.resized(image, height, width, options.resample)
    if options.boxed is not None:
        image = pixels.squared(image, options.boxed)
    picture = np.asarray(image)
    if options.crop is not None:
        picture = center_crop(picture, options.crop.height, options.crop.width)
    return picture


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; nothing is free."""
    size = frame(options)
    assert size is not None  # `Options` refuses the rest
    shape = (1, 3, size.height, size.width)
    return (TensorSpec(name="pixel_values", dtype="float32", shape=shape),)


FIXED = Geometry("fixed", Options, prepare, tokens, inputs)
