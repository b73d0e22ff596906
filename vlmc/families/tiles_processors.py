"""Reads the JSON of the image processors that cut pictures into a grid, as they read it."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.image_processors import (
    _AT,
    _CLIP_COLORS,
    _COMMON,
    _box,
    _count,
    _flag,
    _resample,
    _settings,
    _values,
)
from vlmc.runtime.images import check_spec
from vlmc.schema import Json

_SQUARE: Json = {"size": {"height": 384, "width": 384}, "default_to_square": True}
_TILED: Json = {**_COMMON, **_CLIP_COLORS, **_SQUARE, "min_patches": 1, "max_patches": 12}
TILES_CLASSES: dict[str, Json] = {"GotOcr2ImageProcessor": _TILED}
OVIS_CLASSES: dict[str, Json] = {
    "Ovis2ImageProcessor": {**_TILED, "crop_to_patches": False, "use_covering_area_grid": True}
}
DOCLING_CLASSES: dict[str, Json] = {
    "GraniteDoclingImageProcessor": {
        **_TILED,
        "size": {"height": 512, "width": 512},
        "max_patches": 32,
        "crop_to_patches": True,
        "fine_route": False,
        "dense_max_patches": 0,
        "dense_max_scale": 0.0,
        "dense_min_aspect": 0.0,
        "dense_max_aspect": 0.0,
    }
}
_LONGEST = 16  # its tokenizer has no marks for more tiles on a side
# transformers has it with torchvision alone.
TORCH_TILES_CLASSES: dict[str, Json] = {
    "Cohere2VisionImageProcessor": {
        **_TILED,
        "size": {"height": 512, "width": 512},
        "patch_size": 16,
        "crop_to_patches": True,
    }
}


def tiles_spec(
    image_processor_json: Json, tokens: int, *, at: str = _AT, max_tiles: int | None = None
) -> ImageSpec:
    """The ``tiles`` geometry of a GOT-OCR2 image processor told to ``crop_to_patches``.

    Args:
        image_processor_json: As for ``fixed_spec``.
        tokens: Feature rows the vision tower makes of every tile.
        at: The file, for errors.
        max_tiles: The recipe's own bound, in the place of the processor's.

    Raises:
        VlmcError: Another class, a value its class cannot use, or bounds that exclude each other.
    """
    _, values = _settings(image_processor_json, TILES_CLASSES, at)
    options = _options(values, tokens, at, max_tiles)
    spec = ImageSpec(geometry="tiles", options=options)
    return check_spec(spec, at=at if max_tiles is None else "images.max-tiles")


def torch_tiles_spec(
    image_processor_json: Json, tokens: int, *, at: str = _AT, max_tiles: int | None = None
) -> ImageSpec:
    """The ``tiles`` geometry of a Cohere2 Vision image processor; arguments as ``tiles_spec``.

    Raises:
        VlmcError: As ``tiles_spec``, or it counts other tokens than ``tokens``.
    """
    _, values = _settings(image_processor_json, TORCH_TILES_CLASSES, at)
    side = _count(values["patch_size"], f"{at}: patch_size")
    if side**2 != tokens:
        raise VlmcError(
            f"the processor counts {side}**2 tokens for a tile, the model makes {tokens}",
            at=f"{at}: patch_size",
        )
    if not _flag(values, "crop_to_patches", at):
        max_tiles = 1
    options = _options(values, tokens, at, max_tiles)
    # Its grids may have any number of tiles, whatever min_patches says.
    options |= {"fit": "scale", "min_tiles": 1, "as_torch": True}
    options["values"] = {**_values(values, at), "fused": True}
    spec = ImageSpec(geometry="tiles", options=options)
    return check_spec(spec, at=at if max_tiles is None else "images.max-tiles")


def ovis_tiles_spec(
    image_processor_json: Json,
    tokens: int,
    *,
    marks: int,
    at: str = _AT,
    max_tiles: int | None = None,
) -> ImageSpec:
    """The ``tiles`` geometry of an Ovis 2 image processor; arguments as ``tiles_spec``.

    ``marks`` are the feature rows of the tokens around a picture's tiles.

    Raises:
        VlmcError: As ``tiles_spec``.
    """
    _, values = _settings(image_processor_json, OVIS_CLASSES, at)
    if _flag(values, "do_center_crop", at) and _box(values, "crop_size", at) != _box(
        values, "size", at
    ):
        raise VlmcError("tiles would be cut to another size", at=f"{at}: crop_size")
    if not _flag(values, "crop_to_patches", at):
        max_tiles = 1
    options = _options(values, tokens, at, max_tiles)
    covering = _flag(values, "use_covering_area_grid", at)
    if covering or options["max_tiles"] == 1:
        options["min_tiles"] = 1  # it does not count there
    if covering:
        options["fit"] = "cover"
    options |= {"marks": marks, "whole_first": True}
    spec = ImageSpec(geometry="tiles", options=options)
    return check_spec(spec, at=at if max_tiles is None else "images.max-tiles")


def docling_tiles_spec(
    image_processor_json: Json, tokens: int, *, at: str = _AT, max_tiles: int | None = None
) -> ImageSpec:
    """The ``tiles`` geometry of a Granite Docling image processor; arguments as ``tiles_spec``.

    Raises:
        VlmcError: As ``tiles_spec``; or it asks for the fine route, which each prompt chooses.
    """
    _, values = _settings(image_processor_json, DOCLING_CLASSES, at)
    if _flag(values, "fine_route", at):
        raise VlmcError(
            "the fine route of the connector is not supported",
            at=f"{at}: fine_route",
            hint="with false, a tile has image_seq_len tokens",
        )
    cropped = _flag(values, "crop_to_patches", at)
    values["do_resize"] = True  # tiles are, whatever it says
    options = _options(values, tokens, at, max_tiles if cropped else 1)
    if options["max_tiles"] == 1:
        options["min_tiles"] = 1  # it does not count there
    elif dense := _dense(values, at):
        if max_tiles is not None:
            raise VlmcError(
                f"the checkpoint has wide pages cut into up to {dense['tiles']} tiles",
                at="images.max-tiles",
                hint="leave max-tiles out, or set dense_max_patches of the processor to 0",
            )
        options["dense"] = dense
    options["longest"] = _LONGEST
    spec = ImageSpec(geometry="tiles", options=options)
    return check_spec(spec, at=at if max_tiles is None else "images.max-tiles")


def _dense(values: Json, at: str) -> Json | None:
    """The rule for pages of more tiles; None where no page can meet it."""
    keys = {"scale": "dense_max_scale", "wider": "dense_min_aspect", "widest": "dense_max_aspect"}
    found = {"tiles": values["dense_max_patches"]}
    for name, key in keys.items():
        number = values[key]
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise VlmcError(f"{number!r} is no number", at=f"{at}: {key}")
        found[name] = max(0.0, float(number))
    return found if found["tiles"] and (found["scale"] or found["wider"]) else None


def _options(values: Json, tokens: int, at: str, max_tiles: int | None) -> Json:
    most = values["max_patches"] if max_tiles is None else max_tiles
    if most == 1 and not _flag(values, "do_resize", at):
        raise VlmcError("pictures of one tile would keep their own size", at=f"{at}: do_resize")
    return {
        **_box(values, "size", at),
        "min_tiles": values["min_patches"],
        "max_tiles": most,
        "tokens": tokens,
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": _values(values, at),
    }
