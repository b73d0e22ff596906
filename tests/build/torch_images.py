"""Image processors that transformers has with torchvision alone, by what torchvision calls."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

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


class Llama4Images:
    """``Llama4ImageProcessor``: its own code, on stand-ins for what it calls of torchvision."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.size = {"height": 336, "width": 336}
        self.image_mean = self.image_std = [0.5, 0.5, 0.5]
        self.resample, self.max_patches, self.resize_to_max_canvas = 2, 16, False
        self.__dict__.update(settings)
        self.known = llama4_module().Llama4ImageProcessor

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **_: Any) -> dict[str, Any]:
        import torch
        from transformers.image_transforms import convert_to_rgb
        from transformers.image_utils import SizeDict, make_flat_list_of_images

        levels = [
            torch.from_numpy(np.array(convert_to_rgb(one))).permute(2, 0, 1)
            for one in make_flat_list_of_images(images)
        ]
        mode = {2: "bilinear", 3: "bicubic"}[self.resample]
        stand_in = SimpleNamespace(
            resize=lambda x, size, resample: resize(x, size.height, size.width, mode),
            normalize=normalize,
        )
        given = (True, 1 / 255, True, self.image_mean, self.image_std)
        stand_in.rescale_and_normalize = lambda x, *_: self.known.rescale_and_normalize(
            stand_in, x, *given
        )
        made = self.known._preprocess(
            stand_in,
            levels,
            True,
            SizeDict(**self.size),
            self.resample,
            *given,
            max_patches=self.max_patches,
            resize_to_max_canvas=self.resize_to_max_canvas,
            disable_grouping=None,
            return_tensors="pt",
        )
        return {
            "pixel_values": made["pixel_values"].float(),
            "aspect_ratios": [one.tolist() for one in made["aspect_ratios"]],
        }


class Molmo2Images:
    """``Molmo2ImageProcessor``: its own code, on stand-ins for what it calls of torchvision."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor

        self.known = Molmo2ImageProcessor
        names = ("size", "max_crops", "overlap_margins", "patch_size", "pooling_size")
        self.settings = {name: settings.get(name, getattr(self.known, name)) for name in names}
        self.numbers = {
            "do_rescale": settings.get("do_rescale", True),
            "rescale_factor": 1 / 255,
            "do_normalize": settings.get("do_normalize", True),
            "image_mean": settings.get("image_mean", [0.5] * 3),
            "image_std": settings.get("image_std", [0.5] * 3),
        }

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **_: Any) -> dict[str, Any]:
        import torch
        from transformers.image_transforms import convert_to_rgb
        from transformers.image_utils import SizeDict, make_flat_list_of_images

        class Known(self.known):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                """Nothing: the class itself asks for torchvision."""

            def resize(self, x: Any, size: Any, resample: Any, antialias: bool) -> Any:
                assert resample == 2
                assert not antialias
                shape = [size.height, size.width]
                if list(x.shape[-2:]) == shape:
                    return x
                return torch.nn.functional.interpolate(x, shape, mode="bilinear")

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
        made = Known()._preprocess(
            levels,
            do_resize=True,
            resample=2,
            do_convert_rgb=True,
            disable_grouping=None,
            return_tensors="pt",
            **{**self.settings, "size": SizeDict(**self.settings["size"])},
            **self.numbers,
        )
        return dict(made)


class PerceptionLMImages:
    """``PerceptionLMImageProcessor``: its own code, on stand-ins for what it calls of torchvision.

    Pictures that differ in their tiles, of which it makes no tensor, come in turn.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.known = import_images("perception_lm", SimpleNamespace()).PerceptionLMImageProcessor
        self.settings = settings

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **_: Any) -> dict[str, Any]:
        import torch
        from transformers.image_processing_backends import TorchvisionBackend
        from transformers.image_transforms import convert_to_rgb
        from transformers.image_utils import make_flat_list_of_images

        from vlmc.passes.stand_in import in_turn

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
        names += ("vision_input_type", "tile_size", "max_num_tiles")
        given = {name: getattr(known, name) for name in names}
        mode = {2: "bilinear", 3: "bicubic"}[known.resample]
        levels = [
            torch.from_numpy(np.array(convert_to_rgb(one))).permute(2, 0, 1)
            for one in make_flat_list_of_images(images)
        ]
        resizing = patch.object(
            TorchvisionBackend,
            "resize",
            lambda self, x, size, **_: resize(x, size.height, size.width, mode),
        )
        with resizing:
            made = known._preprocess(
                levels,
                **given,
                rescale_factor=self.settings.get("rescale_factor", 1 / 255),
                disable_grouping=None,
                return_tensors=None,
            )
        return {"pixel_values": in_turn([one.numpy() for one in made["pixel_values"]])}


def normalize(levels: Any, mean: list[float], std: list[float]) -> Any:
    """``torchvision.transforms.v2.functional.normalize``, in the element type of the levels."""
    import torch

    mean, std = (torch.as_tensor(v, dtype=levels.dtype)[:, None, None] for v in (mean, std))
    return levels.sub(mean).div_(std)


def llama4_module() -> Any:
    """The module of ``Llama4ImageProcessor``."""
    import torch

    functional = SimpleNamespace(
        pad=lambda x, padding, fill: torch.nn.functional.pad(x, (0, padding[2], 0, padding[3]))
    )
    return import_images("llama4", functional)


def import_images(kind: str, functional: SimpleNamespace) -> Any:
    """A module of image processors that asks for torchvision when it is imported.

    ``functional`` stands for ``torchvision.transforms.v2.functional``.
    """
    import transformers.image_processing_backends as backends

    # What transformers found out by now it remembers: it looks for no torchvision again.
    assert not backends.is_torchvision_available()
    functional.InterpolationMode = SimpleNamespace
    found = {name: ModuleType(name) for name in ("torchvision", "torchvision.transforms")}
    found["torchvision.transforms.v2"] = v2 = ModuleType("torchvision.transforms.v2")
    v2.functional = functional  # type: ignore[attr-defined]
    before = set(sys.modules)
    sys.modules.update(found)
    try:
        return importlib.import_module(f"transformers.models.{kind}.image_processing_{kind}")
    finally:
        # What else came along stays: a class of a configuration must be one and the same.
        for name in sys.modules.keys() - before:
            if name in found or ".image_processing_" in name:
                del sys.modules[name]


def resize(levels: Any, height: int, width: int, mode: str = "bicubic") -> Any:
    """``torchvision.transforms.v2.functional.resize`` of uint8 [3, H, W], or of a batch."""
    import torch

    if levels.shape[-2:] == (height, width):
        return levels
    batch = levels if levels.dim() == 4 else levels[None]
    made = torch.nn.functional.interpolate(
        batch, size=[height, width], mode=mode, antialias=True, align_corners=False
    )
    return made if levels.dim() == 4 else made[0]
