"""Our towers beside those of the package timm: with ``--timm FOLDER``, see docs/testing.md."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.checkpoints.parts import randomize
from tests.checkpoints.timm_towers import trained
from vlmc.families.fastvit import ARCHITECTURES, read_fastvit
from vlmc.families.fastvit_modules import FastVitTower

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
    ours.eval().load_state_dict(trained(randomize(theirs), 1).state_dict())
    for height, width in sizes:
        pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            wanted, found = theirs.forward_features(pixels), ours.forward_features(pixels)
        assert wanted.std() > 1e-3
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


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
