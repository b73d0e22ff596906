"""How many features a picture has, told to a processor of transformers whose file leaves it out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError

# More pixels than any side has: no patch is counted.
_NO_PATCH = 1 << 30
# How transformers' models begin to say that a prompt has more or fewer.
_DIFFER = "Image features and image tokens do not match"


@contextmanager
def counted() -> Iterator[None]:
    """Tells of image tokens that are not as many as features: the checkpoint's files disagree.

    Raises:
        VlmcError: They are not, inside.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(_DIFFER):
            raise
        counts = str(error).removeprefix(_DIFFER).lstrip(",: ")
        raise VlmcError(
            f"the processor counts other tokens for a picture than the model makes ({counts})",
            at="processor_config.json",
            hint="transformers cannot answer either; checks: {reference: off} builds without",
        ) from error


def tell_counts(processor: Any, images: ImageSpec) -> None:
    """Fills in what older LLaVA checkpoints do not say, and transformers then fails without.

    Mirrors what ``LlavaProcessor`` and ``LlavaNextProcessor`` do with it: they multiply patches
    along both sides and add what is no patch.

    Args:
        processor: Changed in place; its ``patch_size`` is None.
        images: The family's, which knows the tower.

    Raises:
        VlmcError: The processor counts in another way.
    """
    side, rows, tokens = (images.options.get(key) for key in ("side", "rows", "tokens"))
    if (
        isinstance(side, int)
        and isinstance(rows, int)
        and not hasattr(processor, "downsample_rate")
    ):
        processor.patch_size, processor.num_additional_image_tokens = side // rows, 0
    elif isinstance(tokens, int):
        processor.patch_size, processor.num_additional_image_tokens = _NO_PATCH, tokens
    else:
        raise VlmcError(
            "there is no 'patch_size'",
            at="processor_config.json",
            hint="transformers' processor needs it; checks: {reference: off} builds without",
        )
    processor.vision_feature_select_strategy = "full"
