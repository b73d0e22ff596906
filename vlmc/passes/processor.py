"""transformers' processor of a checkpoint, made without what a build does not need."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.passes.bounds import bound_images
from vlmc.passes.feature_counts import tell_counts
from vlmc.passes.host_images import load_images
from vlmc.passes.processor_class import processor_class
from vlmc.passes.quiet import quiet
from vlmc.passes.stand_in import cut_tensors

_LOGGER = "transformers"
# What is said of a part that needs torchvision, or is for sounds; such a part is done without.
_TORCHVISION = re.compile(
    "video processor|feature extractor|any image processor|dependencies: .*torchvision"
)
# Parts that need torchvision, or are for sounds.
_OTHER_PARTS = ("video_processor", "audio_processor", "feature_extractor")
# What a processor is made of; its own file sets the rest.
_PARTS = {"self", "image_processor", "tokenizer", *_OTHER_PARTS, "chat_template", "kwargs"}


def make_processor(folder: Path, images: ImageSpec) -> Any:
    """The processor of transformers, with the recipe's bounds; no part needs torchvision.

    Raises:
        VlmcError: transformers cannot make it.
    """
    from transformers import AutoProcessor

    here = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet(_LOGGER):
            try:
                processor = AutoProcessor.from_pretrained(folder, backend="pil", **here)
                if not hasattr(processor, "image_processor"):  # it is a tokenizer
                    raise ValueError("no file names its class, and this model type has none")
            except (ImportError, ValueError, OSError) as error:
                if not (isinstance(error, ImportError) or _TORCHVISION.search(str(error))):
                    raise
                processor = _without_video(folder, images, here)
    except (ImportError, ValueError, OSError, KeyError, TypeError) as error:
        raise VlmcError(
            f"transformers cannot make this checkpoint's processor: {error}",
            hint="checks: {reference: off} builds without comparing to transformers",
        ) from error
    # A template that only the tokenizer has is the model's all the same.
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    if getattr(processor, "patch_size", 0) is None:
        tell_counts(processor, images)
    if images.geometry == "patch_rows":
        cut_tensors(processor.image_processor)
    bound_images(processor, images)
    return processor


def _without_video(folder: Path, images: ImageSpec, here: Mapping[str, Any]) -> Any:
    """The processor from its parts, but those that would need torchvision."""
    from transformers import AutoTokenizer

    known = processor_class(folder)
    if known.__name__ == "SmolVLMProcessor":
        return _smolvlm_without_video(folder, here)

    class ImageTextProcessor(known):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, name: str, argument: Any) -> type:
            return type(argument)

    # Its own file, and a template wherever checkpoints of any age have one.
    settings, _ = known.get_processor_dict(folder, **here)
    takes = inspect.signature(known.__init__).parameters.keys()
    tokenizer = AutoTokenizer.from_pretrained(folder, **here)
    pictures = load_images(folder, images, here)
    others: dict[str, Any] = {name: None for name in _OTHER_PARTS if name in takes}
    if images.geometry == "slices":
        others["video_processor"] = pictures  # whose settings it reads, of the same names
    return ImageTextProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        chat_template=settings.get("chat_template") or tokenizer.chat_template,
        **others,
        **{key: value for key, value in settings.items() if key in takes - _PARTS},
    )


def _smolvlm_without_video(folder: Path, here: Mapping[str, Any]) -> Any:
    """For pictures SmolVLM's processor is Idefics3's; for videos it would need num2words too."""
    from transformers import AutoImageProcessor, AutoTokenizer, Idefics3Processor

    settings, _ = Idefics3Processor.get_processor_dict(folder, **here)
    return Idefics3Processor(
        image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil", **here),
        tokenizer=AutoTokenizer.from_pretrained(folder, **here),
        image_seq_len=settings.get("image_seq_len", 169),
        chat_template=settings.get("chat_template"),
    )
