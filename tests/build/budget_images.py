"""Gemma 4 Unified's image processor, which transformers has with torchvision alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.build.torch_images import import_images, normalize, resize


class Gemma4UnifiedImages:
    """``Gemma4UnifiedImageProcessor``: its own code, on stand-ins for what torchvision does."""

    def __init__(self, settings: dict[str, Any]) -> None:
        functional = SimpleNamespace(
            resize=lambda x, size, interpolation, antialias: resize(x, *size, interpolation)
        )
        self.known = import_images("gemma4_unified", functional).Gemma4UnifiedImageProcessor
        self.settings = {
            **settings,
            "resample": {2: "bilinear"}.get(settings.get("resample"), "bicubic"),
        }

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **_: Any) -> dict[str, Any]:
        import torch
        from transformers.image_transforms import convert_to_rgb
        from transformers.image_utils import make_flat_list_of_images

        class Known(self.known):  # type: ignore[misc, name-defined]
            def __init__(self, settings: dict[str, Any]) -> None:
                """The class itself asks for torchvision."""
                self.__dict__.update(settings)

            def rescale_and_normalize(self, x: Any, *given: Any) -> Any:
                rescale, factor, normalize_, mean, std = given
                if not normalize_:
                    return x * factor if rescale else x
                times = 1.0 / factor if rescale else 1.0
                return normalize(x.float(), torch.tensor(mean) * times, torch.tensor(std) * times)

        known = Known(self.settings)
        names = ("do_resize", "resample", "do_rescale", "do_normalize", "image_mean", "image_std")
        names += ("patch_size", "max_soft_tokens", "pooling_kernel_size")
        levels = [
            torch.from_numpy(np.array(convert_to_rgb(one))).permute(2, 0, 1)
            for one in make_flat_list_of_images(images)
        ]
        made = known._preprocess(
            levels,
            **{name: getattr(known, name) for name in names},
            rescale_factor=self.settings.get("rescale_factor", 1 / 255),
            return_tensors="pt",
        )
        return dict(made)
