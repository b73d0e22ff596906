"""Kimi K2.5's image processor, which transformers has with torchvision alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.build.torch_images import import_images, normalize, resize


class KimiImages:
    """``Kimi_K25ImageProcessor``: its own code, on stand-ins for what torchvision does."""

    def __init__(self, settings: dict[str, Any]) -> None:
        known = import_images("kimi_k25", SimpleNamespace()).Kimi_K25ImageProcessor
        names = ("do_resize", "resample", "do_rescale", "do_normalize", "image_mean", "image_std")
        names += ("patch_size", "merge_size", "max_patches", "size")
        self.known = known
        self.given = {name: settings.get(name, getattr(known, name)) for name in names}
        self.given["rescale_factor"] = settings.get("rescale_factor", 1 / 255)
        self.merge_size = self.given["merge_size"]

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **_: Any) -> dict[str, Any]:
        import torch
        from transformers.image_transforms import convert_to_rgb
        from transformers.image_utils import SizeDict, make_flat_list_of_images

        class Known(self.known):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                """Nothing: the class itself asks for torchvision."""

            def resize(self, x: Any, size: Any, resample: int) -> Any:
                mode = {2: "bilinear", 3: "bicubic"}[resample]
                return resize(x, size.height, size.width, mode)

            def pad(self, x: Any, pad_size: Any) -> Any:
                high, wide = pad_size.height - x.shape[-2], pad_size.width - x.shape[-1]
                return torch.nn.functional.pad(x, (0, wide, 0, high))

            def rescale_and_normalize(self, x: Any, *given: Any) -> Any:
                rescale, factor, normalize_, mean, std = given
                if not normalize_:
                    return x * factor if rescale else x
                times = 1.0 / factor if rescale else 1.0
                return normalize(x.float(), torch.tensor(mean) * times, torch.tensor(std) * times)

        levels = [
            torch.from_numpy(np.array(convert_to_rgb(one))).permute(2, 0, 1)
            for one in make_flat_list_of_images(images)
        ]
        given = {**self.given, "size": SizeDict(**self.given["size"])}
        return dict(
            Known()._preprocess(levels, **given, disable_grouping=True, return_tensors=None)
        )
