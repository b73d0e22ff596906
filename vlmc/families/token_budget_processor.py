"""Reads the JSON of Gemma 4's image processors."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.image_processors import (
    _AT,
    _COMMON,
    _count,
    _flag,
    _resample,
    _settings,
    _values,
)
from vlmc.runtime.images import check_spec
from vlmc.schema import Json

BUDGETS = (70, 140, 280, 560, 1120)
_UNIFIED = "Gemma4UnifiedImageProcessor"
_GEMMA4: Json = {
    **_COMMON,
    "do_normalize": False,
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
    "patch_size": 16,
    "max_soft_tokens": 280,
    "pooling_kernel_size": 3,
}
TOKEN_BUDGET_CLASSES: dict[str, Json] = {"Gemma4ImageProcessor": _GEMMA4, _UNIFIED: _GEMMA4}


def token_budget_spec(
    image_processor_json: Json, patch: int, merge: int, side: int, *, at: str = _AT
) -> ImageSpec:
    """The ``token_budget`` geometry of an image processor of ``TOKEN_BUDGET_CLASSES``.

    That of the unified models gives squares of patches as one patch.

    Args:
        image_processor_json: As for ``fixed_spec``.
        patch: The side, in pixels, of the patches that the tower takes.
        merge: The side, in patches, of the squares that the tower pools.
        side: Rows of the tower's table of positions.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, a value its class cannot use, or patches of another size than
            the tower's.
    """
    name, values = _settings(image_processor_json, TOKEN_BUDGET_CLASSES, at)
    for key, wanted in (("patch_size", patch), ("pooling_kernel_size", merge)):
        if _count(values[key], f"{at}: {key}") != wanted:
            raise VlmcError(
                f"the processor says {values[key]}, the vision tower {wanted}", at=f"{at}: {key}"
            )
    most = _count(values["max_soft_tokens"], f"{at}: max_soft_tokens")
    if most not in BUDGETS:
        allowed = [str(budget) for budget in BUDGETS]
        message = f"{most} is no budget that this image processor has"
        raise VlmcError(message, at=f"{at}: max_soft_tokens", allowed=allowed)
    options: Json = {
        "patch_size": patch,
        "merge_size": merge,
        "max_tokens": most,
        "resize": _flag(values, "do_resize", at),
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": _values(values, at),
        "side": side,
    }
    if name == _UNIFIED:  # there is no version of Pillow
        fused = {**_values(values, at), "fused": True}
        options |= {"patch_size": patch * merge, "merge_size": 1, "as_torch": True, "values": fused}
    return check_spec(ImageSpec(geometry="token_budget", options=options), at=at)
