"""An image processor for processors whose own needs torchvision: pictures as the runtime has them.

What it is compared with is then the same pictures; everything after them is still transformers'.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vlmc.bundle.manifest import ImageSpec
from vlmc.runtime.images import hd_crops, naflex, prepare
from vlmc.runtime.images.patches import positions


class NaflexImages:
    """In the place of ``Lfm2VlImageProcessor``; gives what ``Lfm2VlProcessor`` reads of it."""

    model_input_names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    valid_kwargs = None

    def __init__(self, spec: ImageSpec) -> None:
        # As text: there a list may stand for a tuple.
        self.spec = spec
        self.options = naflex.Options.model_validate_json(json.dumps(spec.options))
        self.tile_size = self.options.tile or 0
        self.encoder_patch_size = self.options.patch_size
        self.downsample_factor = self.options.merge_size
        self.use_thumbnail = self.options.whole

    def fetch_images(self, images: Any) -> Any:
        """The pictures themselves."""
        return images

    def __call__(self, images: Any, **_: Any) -> dict[str, Any]:
        """Tiles of all pictures padded to one length, and how each was cut."""
        import torch

        shapes: list[tuple[int, int]] = []
        tiles, rows, columns, sizes = [], [], [], []
        for image in _flat(images):
            cuts = naflex.cuts(image.height, image.width, self.options)
            values = prepare(image, self.spec).tensors["pixel_values"]
            ends = np.cumsum([tall * wide for tall, wide in cuts])[:-1]
            for (tall, wide), part in zip(cuts, np.split(values, ends), strict=True):
                places = positions(tall, wide, self.options.merge_size)
                tile = np.empty_like(part)
                tile[places[:, 0] * wide + places[:, 1]] = part
                tiles.append(tile)
            shapes += cuts
            down, across = naflex.tile_grid(image.height, image.width, self.options)
            rows.append(max(down, 1))
            columns.append(max(across, 1))
            sizes.append(list(naflex.target_size(image.height, image.width, self.options)))
        padded = np.zeros((len(tiles), max(map(len, tiles)), tiles[0].shape[1]), np.float32)
        seen = np.zeros(padded.shape[:2], np.int32)
        for at, tile in enumerate(tiles):
            padded[at, : len(tile)], seen[at, : len(tile)] = tile, 1
        return {
            "pixel_values": torch.from_numpy(padded),
            "pixel_attention_mask": torch.from_numpy(seen),
            "spatial_shapes": torch.tensor(shapes),
            "image_rows": rows,
            "image_cols": columns,
            "image_sizes": sizes,
        }


class HdImages:
    """In the place of ``Phi4MultimodalImageProcessor``; gives what processor and model read."""

    model_input_names = ("image_pixel_values", "image_sizes", "image_attention_mask")
    valid_kwargs = None

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec
        # As text: there a list may stand for a tuple.
        self.options = hd_crops.Options.model_validate_json(json.dumps(spec.options))

    def fetch_images(self, images: Any) -> Any:
        """The pictures themselves."""
        return images

    def __call__(self, images: Any, **_: Any) -> dict[str, Any]:
        """Crops of all pictures, filled up to the most that one has, and how each was cut."""
        import torch

        pictures = list(_flat(images))
        made = [prepare(one, self.spec) for one in pictures]
        grids = [hd_crops.grid(one.height, one.width, self.options) for one in pictures]
        crops = [one.tensors["pixel_values"] for one in made]
        most, side = max(map(len, crops)), self.options.patches
        values = np.zeros((len(crops), most, *crops[0].shape[1:]), np.float32)
        seen = np.ones((len(crops), most, side, side), np.float32)
        for at, one in enumerate(made):
            values[at, : len(crops[at])] = crops[at]
            shown = one.tensors["patch_places"] >= 0
            seen[at, : len(crops[at])] = shown.reshape(-1, side, side)
        return {
            "image_pixel_values": torch.from_numpy(values),
            "image_sizes": torch.tensor(grids) * self.options.side,
            "image_attention_mask": torch.from_numpy(seen),
            "num_img_tokens": [one.tokens for one in made],
        }


class TilesInTurn:
    """In the place of ``PerceptionLMImageProcessor``; also where pictures differ in their tiles.

    That one then makes no tensor of them; its model reads all tiles in turn, whosever they are.
    """

    model_input_names = ("pixel_values",)
    valid_kwargs = None

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec

    def fetch_images(self, images: Any) -> Any:
        """The pictures themselves."""
        return images

    def __call__(self, images: Any, **_: Any) -> dict[str, Any]:
        """Tiles of all pictures as those of one, [1, tiles, 3, S, S]; by number, each one's own."""
        made = [prepare(one, self.spec).tensors["pixel_values"] for one in _flat(images)]
        return {"pixel_values": in_turn(made)}


def in_turn(pictures: Sequence[Any]) -> Any:
    """Tiles float32 [T, 3, S, S] of each picture as a tensor [1, tiles, 3, S, S].

    Its ``[number]`` is one picture's, which ``PerceptionLMProcessor`` counts.
    """
    import torch

    class InTurn(torch.Tensor):
        def __getitem__(self, at: Any) -> Any:
            return pictures[at] if type(at) is int else super().__getitem__(at)

    tiles = torch.from_numpy(np.concatenate(pictures))[None]
    return tiles.as_subclass(InTurn)


# By geometry.
STAND_INS = {"naflex": NaflexImages, "hd_crops": HdImages, "whole_then_tiles": TilesInTurn}


def _flat(images: Any) -> Iterator[Any]:
    for one in images:
        if isinstance(one, Sequence):
            yield from _flat(one)
        else:
            yield one


def cut_tensors(images: Any) -> None:
    """Lets Fuyu's image processor of Pillow cut tensors, which its processor hands it.

    It takes arrays alone, and gives patches without the batch's axis that is then taken away.
    """
    import torch

    cut = images.patchify_image

    def patchify_image(image: Any, patch_size: Any = None) -> Any:
        return torch.from_numpy(cut(image.numpy(), patch_size))[None]

    images.patchify_image = patchify_image
