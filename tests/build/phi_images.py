"""``Phi4MultimodalImageProcessor``: its own code, on stand-ins for what it calls of torchvision."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.build.torch_images import import_images, normalize, resize

# What the processor counts for the whole picture and its marks, whatever the size of a crop.
_COUNTED = 256 + 16


class Phi4Images:
    """``settings`` are the processor's attributes, as its JSON has them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.size = {"height": 448, "width": 448}
        self.image_mean = self.image_std = [0.5, 0.5, 0.5]
        self.resample, self.patch_size, self.dynamic_hd = 3, 14, 36
        self.do_rescale = self.do_normalize = True
        self.__dict__.update(settings)
        module = import_images("phi4_multimodal", SimpleNamespace(resize=smaller, pad=pad))
        self.known = module.Phi4MultimodalImageProcessor

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
        stand_in: Any = type("StandIn", (), {})()  # one that a cache can name
        stand_in.resize = whole
        stand_in.normalize = lambda x, mean, std, inplace: normalize(x, mean, std)
        for name, made in vars(self.known).items():
            if callable(made) and not name.startswith("_"):
                setattr(stand_in, name, partial(made, stand_in))
        base = self.known.__mro__[1]
        for name in ("rescale_and_normalize", "_fuse_mean_std_and_rescale_factor"):
            setattr(stand_in, name, partial(getattr(base, name), stand_in))
        made = self.known._preprocess(
            stand_in,
            levels,
            do_resize=True,
            size=SizeDict(**self.size),
            resample=self.resample,
            do_rescale=self.do_rescale,
            rescale_factor=1 / 255,
            do_normalize=self.do_normalize,
            image_mean=tuple(self.image_mean),
            image_std=tuple(self.image_std),
            patch_size=self.patch_size,
            dynamic_hd=self.dynamic_hd,
            return_tensors=None,
        )
        side = -(-(self.size["height"] // self.patch_size) // 2)
        counts = made["num_img_tokens"]
        made["num_img_tokens"] = [one - _COUNTED + side * (side + 1) for one in counts]
        return dict(made)


def smaller(levels: Any, size: list[int]) -> Any:
    """``torchvision.transforms.v2.functional.resize`` of uint8 [3, H, W] as it is by default."""
    return resize(levels, *size, "bilinear")


def pad(levels: Any, sides: list[int], fill: list[int]) -> Any:
    """``torchvision.transforms.v2.functional.pad`` on the right and below, of one color."""
    import torch

    return torch.nn.functional.pad(levels, (0, sides[2], 0, sides[3]), value=fill[0])


def whole(values: Any, size: Any, resample: int, antialias: bool) -> Any:
    """``TorchvisionBackend.resize`` of floats [3, H, W]."""
    import torch

    if values.shape[-2:] == (size.height, size.width):
        return values
    mode = {0: "nearest", 2: "bilinear", 3: "bicubic"}[resample]
    kept = {} if mode == "nearest" else {"align_corners": False, "antialias": antialias}
    return torch.nn.functional.interpolate(
        values[None], size=[size.height, size.width], mode=mode, **kept
    )[0]


def projected(model: Any, inputs: Any) -> SimpleNamespace:
    """What the model projects of each picture, [1, tokens, hidden], in ``pooler_output``."""
    kept: list[Any] = []
    embed = model.model.embed_tokens_extend.image_embed
    hook = embed.img_projection_down.register_forward_hook(lambda _, x, y: kept.append(y[0]))
    model(**inputs)
    hook.remove()
    return SimpleNamespace(pooler_output=kept)
