"""Image processors that transformers has with torchvision alone, by what torchvision calls."""

from __future__ import annotations

from typing import Any

import numpy as np


class Cohere2VisionImages:
    """``Cohere2VisionImageProcessor``; ``settings`` are its attributes, as its JSON has them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.size = {"height": 512, "width": 512}
        self.patch_size, self.max_patches, self.crop_to_patches = 16, 12, True
        self.image_mean = [0.48145466, 0.4578275, 0.40821073]
        self.image_std = [0.26862954, 0.26130258, 0.27577711]
        self.__dict__.update(settings)

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **_: Any) -> dict[str, Any]:
        import torch
        from transformers.image_transforms import convert_to_rgb
        from transformers.image_utils import make_flat_list_of_images

        side = self.size["height"]
        found, counts = [], []
        for one in make_flat_list_of_images(images):
            levels = torch.from_numpy(np.array(convert_to_rgb(one))).permute(2, 0, 1)
            columns, rows = self.canvas(*levels.shape[-2:]) if self.crop_to_patches else (1, 1)
            whole = resize(levels, rows * side, columns * side)
            tiles = [
                whole[:, row * side :, column * side :][:, :side, :side]
                for row in range(rows)
                for column in range(columns)
            ]
            if len(tiles) > 1:
                tiles.append(resize(levels, side, side))
            found.append(self.normalize(torch.stack(tiles)))
            counts.append(len(tiles))
        return {"pixel_values": torch.cat(found), "num_patches": counts}

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """``get_optimal_tiled_canvas``."""
        numbers = range(1, self.max_patches + 1)
        grids = [(w, h) for w in numbers for h in numbers if w * h <= self.max_patches]
        grids = sorted(grids, key=lambda grid: grid[0] * grid[1])
        scales = np.min(np.array(grids) * self.size["height"] / np.stack([width, height]), axis=-1)
        if np.all(scales < 1):
            return grids[int(np.argmax(scales))]
        return grids[int(np.argmin(np.where(scales < 1.0, 10e9, scales)))]

    def normalize(self, levels: Any) -> Any:
        """``TorchvisionBackend.rescale_and_normalize``."""
        import torch

        mean, std = (torch.tensor(v) * (1.0 / (1 / 255)) for v in (self.image_mean, self.image_std))
        return levels.float().sub_(mean[:, None, None]).div_(std[:, None, None])


def resize(levels: Any, height: int, width: int) -> Any:
    """``torchvision.transforms.v2.functional.resize`` of uint8 [3, H, W], bicubic."""
    import torch

    if levels.shape[-2:] == (height, width):
        return levels
    return torch.nn.functional.interpolate(
        levels[None], size=[height, width], mode="bicubic", antialias=True, align_corners=False
    )[0]
