"""An image processor that runs the bundle's own geometry, where transformers' needs torchvision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmc.bundle.manifest import ImageSpec
from vlmc.passes.stand_in import STAND_INS
from vlmc.runtime.images import overlap, prepare
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Json


def read_settings(path: Path) -> Json:
    """A JSON file's object; empty where there is no such file."""
    settings: Json = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return settings


def load_images(folder: Path, images: ImageSpec, here: Mapping[str, Any]) -> Any:
    """The folder's image processor; ``HostImages`` where it asks for torchvision.

    Args:
        folder: The checkpoint.
        images: Its geometry.
        here: More for transformers' ``from_pretrained``.
    """
    from transformers import AutoImageProcessor

    if images.geometry in STAND_INS:
        return STAND_INS[images.geometry](images)
    try:
        return AutoImageProcessor.from_pretrained(folder, backend="pil", **here)
    except (ImportError, ValueError):
        found = read_settings(folder / "processor_config.json").get("image_processor")
        settings = found if isinstance(found, dict) else {}
        return HostImages(images, settings or read_settings(folder / "preprocessor_config.json"))


class HostImages:
    """Stands for the image processor of a transformers processor.

    The comparison that uses it says nothing of pixels; the geometry's own tests do.

    Attributes:
        images: The geometry.
    """

    def __init__(self, images: ImageSpec, settings: Json) -> None:
        """``settings`` are the processor's JSON: what others read of it."""
        self.images = images
        self.__dict__.update({key: value for key, value in settings.items() if key != "images"})

    def fetch_images(self, images: Any) -> Any:
        """The images: PIL ones, at hand already."""
        return images

    def __call__(self, images: Any, **_: Any) -> dict[str, Any]:
        """``pixel_values`` float32 [tiles, 3, S, S] of all images, and what is counted of each.

        ``num_patches``; Llama 4 counts rows and columns of tiles, ``aspect_ratios``.
        """
        import torch
        from transformers.image_utils import make_flat_list_of_images

        flat = make_flat_list_of_images(images)
        made = [prepare(image, self.images) for image in flat]
        if self.images.geometry == "padded_grid":
            return _gridded(made, self.images)
        if self.images.geometry == "token_budget":
            return _budgeted(made)
        tensors = [one.tensors["pixel_values"] for one in made]
        values = torch.from_numpy(np.concatenate(tensors))
        if self.images.geometry == "overlap":
            return {"pixel_values": values, **_pooled(flat, made, self.images)}
        if self.images.geometry == "canvas":
            grids = [one.tiles if any(one.tiles) else (1, 1) for one in made]
            return {"pixel_values": values, "aspect_ratios": grids}
        return {"pixel_values": values, "num_patches": [len(one) for one in tensors]}


def _gridded(made: Sequence[PreparedImage], spec: ImageSpec) -> Json:
    """What Kimi K2.5 takes: patches float32 [P, 3, ps, ps] line by line, and the grids."""
    import torch

    merge: Any = spec.options["merge_size"]
    size: Any = spec.options["patch_size"]
    patches, grids = [], []
    for one in made:
        rows, columns = one.grid[1] * merge, one.grid[2] * merge
        places = one.tensors["patch_positions"]
        lines = np.empty_like(one.tensors["pixel_values"])
        lines[places[:, 0] * columns + places[:, 1]] = one.tensors["pixel_values"]
        patches.append(lines.reshape(-1, 3, size, size))
        grids.append([1, rows, columns])
    return {
        "pixel_values": torch.from_numpy(np.concatenate(patches)),
        "image_grid_thw": torch.tensor(grids),
    }


def _budgeted(made: Sequence[PreparedImage]) -> Json:
    """What Gemma 4's unified models take: rows of all pictures padded to the same number."""
    import torch

    most = max(one.tokens for one in made)
    rows, places = [], []
    for one in made:
        beyond = ((0, most - one.tokens), (0, 0))
        rows.append(np.pad(one.tensors["pixel_values"], beyond))
        # The model's are (x, y).
        flipped = one.tensors["patch_positions"][:, ::-1]
        places.append(np.pad(flipped, beyond, constant_values=-1))
    return {
        "pixel_values": torch.from_numpy(np.stack(rows)),
        "image_position_ids": torch.from_numpy(np.stack(places)),
        "num_soft_tokens_per_image": [one.tokens for one in made],
    }


def _pooled(images: Sequence[Any], made: Sequence[PreparedImage], spec: ImageSpec) -> Json:
    """What Molmo 2 takes: which patches are pooled, and rows and columns of both grids."""
    import torch

    # As text: there a list may stand for a tuple.
    options = overlap.Options.model_validate_json(json.dumps(spec.options))
    pooled, grids, before = [], [], 0
    for image, one in zip(images, made, strict=True):
        places, crops = one.tensors["token_patches"], one.tensors["pixel_values"]
        pooled.append(np.where(places >= 0, places + before, -1))
        before += crops.shape[0] * crops.shape[1]
        cut = overlap.cut(image.height, image.width, options)
        grids.append([*cut.whole, *cut.large])
    return {
        "image_token_pooling": torch.from_numpy(np.concatenate(pooled)),
        "image_grids": torch.tensor(grids),
        "image_num_crops": torch.tensor([len(one.tensors["pixel_values"]) for one in made]),
    }
