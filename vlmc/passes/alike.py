"""Layers that are alike: the same classes, settings and sizes, so that one code runs them alike."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlmc.passes.step import number_of

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device)
_NUMBER = "layer_idx"


def alike_layers(module: nn.Module) -> Iterator[tuple[list[nn.Module], Any]]:
    """Layers of a list (``0``, ``1``, ...) of which others are alike, with what they have alike.

    In lists inside of others, the layers of those that are alike are not looked at.
    """
    seen: set[int] = set()
    pending = [module]
    while pending:
        groups: dict[Any, list[nn.Module]] = {}
        for name, child in pending.pop().named_children():
            if id(child) in seen:
                continue
            seen.add(id(child))
            listed = name.isdecimal() and len(layer_numbers(child)) < 2 and not _has_sums(child)
            likeness = described(child) if listed and any(child.children()) else ("own", id(child))
            groups.setdefault(likeness, []).append(child)
        for likeness, layers in groups.items():
            if len(layers) > 1:
                yield layers, likeness
            else:
                pending += layers


def _has_sums(layer: nn.Module) -> bool:
    """Whether torch.onnx adds up numbers of its own and what entered the layer, which it cannot."""
    return any(isinstance(one, _BatchNorm) for one in layer.modules())


def layer_numbers(layer: nn.Module) -> set[int]:
    """Which layer of the cache it is, as transformers' modules know it."""
    found = [vars(one)[_NUMBER] for one in layer.modules() if vars(one).get(_NUMBER) is not None]
    return {number_of(one) for one in found}


def described(layer: nn.Module) -> Any:
    """All that its code can read of it but its number, of weights their sizes; comparable.

    What is neither a plain value nor a part of the layer is known by its identity.
    """
    inside = {id(module): name for name, module in layer.named_modules()}
    tensors: dict[int, int] = {}
    telling: set[int] = set()

    def tell(value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return type(value), value
        if isinstance(value, nn.Module):
            return "module", inside.get(id(value), id(value))
        if isinstance(value, Tensor):
            return "tensor", *constant_of(value)
        if id(value) in telling:
            return ("again",)
        telling.add(id(value))
        try:
            return parts(value)
        finally:
            telling.discard(id(value))

    def parts(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value), *map(tell, value)
        if isinstance(value, set | frozenset):
            return type(value), frozenset(map(tell, value))
        if isinstance(value, dict):
            return type(value), *((tell(key), tell(one)) for key, one in value.items())
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            bound = (cells, value.__defaults__, value.__kwdefaults__)
            return value.__code__, id(value.__globals__), tell(bound)
        if isinstance(value, MethodType):
            return "method", tell(value.__func__), tell(value.__self__)
        if isinstance(value, partial):
            return "partial", tell(value.func), tell(value.args), tell(value.keywords)
        return "object", id(value)

    def weight(value: Tensor | None) -> Any:
        if value is None:
            return None
        place = tensors.setdefault(id(value), len(tensors))
        return place, type(value), value.dtype, sizes_of(value)

    def attribute(name: str, value: Any) -> Any:
        if name == _NUMBER and value is not None:
            return "number"
        if name in ("_parameters", "_buffers"):
            return tuple((key, weight(one)) for key, one in value.items())
        return tell(value)

    return tuple(
        (name, type(one), *((key, attribute(key, value)) for key, value in vars(one).items()))
        for name, one in layer.named_modules()
    )


def constant_of(value: Tensor) -> tuple[Any, ...]:
    """What a tensor is that is no weight: its numbers, where it has any."""
    from torch._subclasses.fake_tensor import FakeTensor

    if isinstance(value, FakeTensor) or value.device.type != "cpu":
        return ("object", id(value))
    numbers = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return value.dtype, tuple(value.shape), numbers


def sizes_of(value: Tensor) -> tuple[Any, ...]:
    """Its shape, comparable: of a free size, the expression."""
    return tuple(size if isinstance(size, int) else size.node.expr for size in value.shape)
