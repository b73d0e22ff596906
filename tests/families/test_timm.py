"""Our towers beside those of the package timm: with ``--timm FOLDER``, see docs/testing.md."""

from __future__ import annotations

import importlib
import sys
from copy import deepcopy
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.checkpoints.parts import randomize
from tests.checkpoints.streams import blocks
from tests.checkpoints.timm_towers import trained
from vlmc.families import perception_encoder
from vlmc.families.fastvit import ARCHITECTURES, read_fastvit
from vlmc.families.fastvit_modules import FastVitTower
from vlmc.families.mobilenet_v5 import network
from vlmc.families.mobilenet_v5_modules import MobileNetV5
from vlmc.families.perception_encoder import read_perception_encoder
from vlmc.families.perception_modules import PerceptionTower

CONFIG = SimpleNamespace(_attn_implementation="eager")
SMALL = {
    4: {"layers": [1, 1, 2, 1], "embed_dims": [32, 64, 64, 128]},
    5: {"layers": [1, 1, 2, 1, 2], "embed_dims": [32, 64, 64, 128, 128]},
}
FREE = {
    "layers": [1, 1, 1],
    "embed_dims": [8, 32, 64],
    "mlp_ratios": [1.5, 2, 3],
    "token_mixers": ["repmixer", "attention", "attention"],
    "se_downsamples": [True, False, True],
    "cls_ratio": 1.0,
    "down_patch_size": 5,
    "down_stride": 3,
    "repmixer_kernel_size": 5,
    "lkc_use_act": False,
    "stem_use_scale_branch": True,
    "drop_path_rate": 0.2,
    "layer_scale_init_value": 0.1,
}


class _Named(type):
    """A class of torchvision's that timm names; nothing is done with it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Module(ModuleType):
    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, _Named(name, (), {}))
        return self.__dict__[name]


class _Torchvision:
    """Finds any module of torchvision: timm's towers need no more than that they are there."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] != "torchvision":
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@pytest.fixture(scope="module")
def timm(request: pytest.FixtureRequest) -> Any:
    folder = request.config.getoption("--timm")
    paths = patch.object(sys, "path", [folder, *sys.path])
    with paths, patch.object(sys, "meta_path", [*sys.meta_path, _Torchvision()]):
        return importlib.import_module("timm")


def shapes(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def compare(theirs: Any, ours: Any, *sizes: tuple[int, int]) -> None:
    agree(trained(randomize(theirs), 1), ours, *sizes)


def agree(theirs: Any, ours: Any, *sizes: tuple[int, int], within: float = 1e-5) -> None:
    stored = theirs.state_dict()
    # What pools features is no part of ours.
    left = {name for name in stored if name.startswith(("attn_pool.", "fc_norm."))}
    ours.eval().load_state_dict({name: stored[name] for name in stored.keys() - left})
    for height, width in sizes:
        pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            wanted, found = theirs.forward_features(pixels), ours.forward_features(pixels)
        assert wanted.std() > 1e-3
        most = within * float(wanted.std())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=most)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_fastvit_is_timms(timm: Any, name: str, merged: bool) -> None:
    for args in ({}, SMALL[len(ARCHITECTURES[name].layers)]):
        args = {**args, "inference_mode": merged}
        sizes = read_fastvit({"architecture": name, "model_args": args})
        where = "cpu" if "layers" in args else "meta"
        with torch.device(where):
            theirs = timm.create_model(name, num_classes=0, **args)
            ours = FastVitTower(sizes, CONFIG, matrices=False)
        assert shapes(ours) == shapes(theirs)
    compare(theirs, ours, (64, 64), (100, 131))


@pytest.mark.parametrize("merged", [True, False])
def test_a_fastvit_of_other_sizes_is_timms(timm: Any, merged: bool) -> None:
    args = {**FREE, "inference_mode": merged}
    sizes = read_fastvit({"architecture": "fastvit_mci3.any", "model_args": args})
    theirs = timm.create_model("fastvit_mci3", num_classes=0, **args)
    compare(theirs, FastVitTower(sizes, CONFIG, matrices=False), (97, 70))
    with torch.no_grad():
        height, width = theirs.forward_features(torch.zeros(1, 3, 97, 70)).shape[2:]
    assert (sizes.side(97), sizes.side(70)) == (height, width)


def test_fastvlms_own_tower_is_timms_at_its_size(timm: Any) -> None:
    theirs = timm.create_model("fastvit_mci3", num_classes=0, inference_mode=True)
    sizes = read_fastvit({"architecture": "fastvit_mci3", "model_args": {"inference_mode": True}})
    compare(theirs, FastVitTower(sizes, CONFIG, matrices=False), (256, 192))


ENCODER = {"embed_dim": 64, "depth": 2, "num_heads": 4}
# What Perception LM 1B makes of its tower.
LANGUAGE = {
    "global_pool": "",
    "use_post_transformer_norm": False,
    "init_values": 0.1,
    "ref_feat_shape": [32, 20],
}
ENCODERS = (
    LANGUAGE,
    {"global_pool": "avg", "use_pre_transformer_norm": False, "no_embed_class": True},
    {"use_abs_pos_emb": False, "use_rot_pos_emb": False, "use_fc_norm": True},
    {"qkv_bias": False, "mlp_ratio": 2.5, "rope_temperature": 99.0, "rope_grid_offset": 0.5},
)


def compare_encoders(timm: Any, name: str, args: dict[str, Any]) -> None:
    sizes = read_perception_encoder({"architecture": name, "model_args": args})
    theirs = timm.create_model(name, num_classes=0, **args)
    compare(theirs, PerceptionTower(sizes, CONFIG), sizes.img_size)


@pytest.mark.parametrize("name", perception_encoder.ARCHITECTURES)
def test_a_perception_encoder_is_timms(timm: Any, name: str) -> None:
    with torch.device("meta"):
        theirs = shapes(timm.create_model(name, num_classes=0))
        ours = shapes(PerceptionTower(read_perception_encoder({"architecture": name}), CONFIG))
    assert ours == {k: v for k, v in theirs.items() if not k.startswith(("attn_pool", "fc_norm"))}
    compare_encoders(timm, name, {**ENCODER, "img_size": 64})


@pytest.mark.parametrize("args", ENCODERS)
def test_a_perception_encoder_of_other_sizes_is_timms(timm: Any, args: dict[str, Any]) -> None:
    free = {**ENCODER, "img_size": [60, 75], "patch_size": 7, **args}
    compare_encoders(timm, "vit_pe_core_large_patch14_336", free)
    compare_encoders(timm, "vit_pe_lang_gigantic_patch14_448", free)


def test_perception_lms_own_tower_is_timms_at_its_size(timm: Any) -> None:
    args = {**LANGUAGE, "embed_dim": 1024, "depth": 23, "img_size": [448, 448]}
    compare_encoders(timm, "vit_pe_core_large_patch14_336", args)


MOBILE = {"block_args": blocks(), "stem_size": 16}
MOBILES = (
    ("mobilenetv5_300m_enc", {**MOBILE, "msfa_output_resolution": 4}),
    ("mobilenetv5_300m_enc", {**MOBILE, "msfa_indices": [1, -1, 2], "stem_bias": False}),
    ("mobilenetv5_300m", {**MOBILE, "msfa_output_resolution": [2, 4], "num_features": 48}),
    ("mobilenetv5_300m_enc", {"channel_multiplier": 0.125}),
    ("mobilenetv5_base", {"channel_multiplier": 0.2, "pad_type": "same"}),
)


@pytest.mark.parametrize(("name", "args"), MOBILES)
def test_a_mobilenet_is_timms(timm: Any, name: str, args: dict[str, Any]) -> None:
    # timm takes a list of blocks apart while it reads it.
    theirs = timm.create_model(name, num_classes=0, **deepcopy(args))
    compare(theirs, MobileNetV5(network(name, args)), (64, 64), (50, 34), (96, 130))


@pytest.mark.parametrize("name", ["mobilenetv5_300m_enc", "mobilenetv5_300m", "mobilenetv5_base"])
def test_a_mobilenet_of_full_size_is_timms(timm: Any, name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0)
        ours = MobileNetV5(network(name, {}))
    assert shapes(ours) == shapes(theirs)


def test_gemma_3ns_own_tower_is_timms_at_its_size(timm: Any) -> None:
    theirs = timm.create_model("mobilenetv5_300m_enc", num_classes=0).eval()
    random = torch.Generator().manual_seed(1)
    for value in theirs.parameters():
        # Eighty blocks of larger weights multiply any rounding.
        width = value[0].numel() if value.dim() > 1 else 4
        value.data = torch.randn(value.shape, generator=random) * width**-0.5
    ours = MobileNetV5(network("mobilenetv5_300m_enc", {}))
    agree(theirs, ours, (256, 256), within=5e-5)
