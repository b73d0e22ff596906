"""A recipe's bounds on pictures, for transformers' processor."""

from __future__ import annotations

from typing import Any

from vlmc.bundle.manifest import ImageSpec


def bound_images(processor: Any, images: ImageSpec) -> None:
    """Has ``processor`` resize and cut pictures as the bundle does.

    Args:
        processor: Of the checkpoint; it is changed.
        images: The bundle's image processing.
    """
    options, bounded = images.options, processor.image_processor
    if {"min_pixels", "max_pixels"} <= options.keys():
        bounded.size = {
            "shortest_edge": options["min_pixels"],
            "longest_edge": options["max_pixels"],
        }
    if hasattr(processor, "num_image_tokens") and "tokens" in options:
        processor.num_image_tokens = options["tokens"]
    if "min_crop" in options:
        # Gemma 3's processor hands its image processor these, not that one's own.
        crops = {"do_pan_and_scan": True, "pan_and_scan_max_num_crops": options["max_tiles"]}
        processor.images_kwargs = {**processor.images_kwargs, **crops}
    elif "max_tiles" in options:
        names = ("dynamic_hd", "max_slice_nums")
        name = next((name for name in names if hasattr(bounded, name)), "max_patches")
        setattr(bounded, name, options["max_tiles"])
