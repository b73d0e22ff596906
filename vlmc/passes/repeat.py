"""Layers that are alike, traced once: the first one runs, each other becomes one call of it.

To trace a program takes time for every operator of every layer. So of layers that are alike (the
same classes, settings and sizes; ``alike``) and that are given alike things, the first alone runs
while a model is traced. A node that takes all it may read, and one that takes all it makes, stand
around it; for each other layer stands one that takes what this one would have read. ``unfold``
writes them out.

A layer may depend on more than that, so whatever a call would not do is an error here: to use the
layer's number but for the cache, to fetch a tensor from elsewhere or to leave one there, to write
into what was given. Then every layer is traced. What code keeps outside of the model, in a
variable of Python's, is not seen here; the check compares the bundle with transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import stateless
from torch.utils import _pytree as pytree

from vlmc.passes.alike import alike_layers, described, layer_numbers, sizes_of
from vlmc.passes.closed import NotAlikeError
from vlmc.passes.step import LayerNumber, StepCache, step_cache, steps
from vlmc.passes.unfold import CALL, DOMAIN, ENTER, LEAVE

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class _Left:
    """In a result, a tensor: its place among those that leave the layer."""

    place: int


@dataclass(frozen=True)
class _Kind:
    """What a layer gave when it ran.

    Attributes:
        number: Its number in the program.
        result: What it returned, flat; ``spec`` makes it whole.
        spec: See ``result``.
        present: What it left in the cache, behind the tensors of the result.
        dtypes: Of all tensors that leave it.
        shapes: As ``dtypes``.
    """

    number: int
    result: list[Any]
    spec: pytree.TreeSpec
    present: list[str]
    dtypes: list[torch.dtype]
    shapes: list[torch.Size]


@dataclass
class Repeats:
    """The layers of one trace; ``calls`` counts those that did not run."""

    calls: int = 0
    _kinds: dict[Any, _Kind] = field(default_factory=dict)

    def forward(
        self, layer: nn.Module, run: Callable[..., Any], likeness: Any, /, *args: Any, **kwargs: Any
    ) -> Any:
        """In place of ``run(*args, **kwargs)``, the forward of a layer.

        Raises:
            NotAlikeError: It is given what a call cannot be given, or does more than a call.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        read = _Read(layer, leaves)
        key = (likeness, spec, tuple(read.told))
        if key in self._kinds:
            kind = self._kinds[key]
            left = _node(CALL, kind.number, read.tensors, kind.dtypes, kind.shapes)
            self.calls += 1
        else:
            kind, left = _run(layer, run, read, spec, len(self._kinds))
            self._kinds[key] = kind
        made = len(left) - len(kind.present)
        if read.cache is not None:
            if read.cache.left(read.number):
                raise NotAlikeError("a layer runs twice")
            read.cache.leave(read.number, dict(zip(kind.present, left[made:], strict=True)))
        result = [left[one.place] if isinstance(one, _Left) else one for one in kind.result]
        return pytree.tree_unflatten(result, kind.spec)


@contextmanager
def repeating(module: nn.Module, dims: Sequence[Any]) -> Iterator[Repeats]:
    """Has layers of a model that are alike traced once while it is open.

    Args:
        module: The model.
        dims: As ``dynamic_shapes`` of torch.export: what the model's inputs have alike.
    """
    repeats = Repeats()
    with ExitStack() as stack:
        stack.enter_context(_instead(module, "forward", _unified(module.forward, dims)))
        for layers, likeness in alike_layers(module):
            for layer in layers:
                for one in layer.modules():
                    if isinstance(vars(one).get("layer_idx"), int):
                        number = LayerNumber(vars(one)["layer_idx"])
                        stack.enter_context(_instead(one, "layer_idx", number))
                forward = partial(repeats.forward, layer, layer.forward, likeness)
                stack.enter_context(_instead(layer, "forward", forward))
        yield repeats


def _unified(run: Callable[..., Any], dims: Sequence[Any]) -> Callable[..., Any]:
    """The forward of a model that knows from its start which sizes of its inputs are equal.

    By itself the tracer finds that out where they meet, which may be in the last layer.
    """
    axes = pytree.tree_leaves(dims, is_leaf=lambda one: isinstance(one, dict))

    @wraps(run)
    def forward(*args: Any) -> Any:
        known: dict[str, Any] = {}
        for tensor, free in zip(pytree.tree_leaves(args), axes, strict=True):
            for axis, dim in free.items():
                if tensor.shape[axis] != known.setdefault(dim.__name__, tensor.shape[axis]):
                    raise NotAlikeError(f"sizes of '{dim.__name__}' differ")
        return run(*args)

    return forward


@contextmanager
def _instead(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    own = vars(module)
    before = own.get(name)
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        if before is not None:
            own[name] = before


class _Read:
    """All that a layer may read.

    Attributes:
        leaves: What it is given, flat.
        tensors: Of those, its own, and the cache's that concern it; each once.
        told: Whatever of them its code can see, comparable.
        weights: Its own parameters and buffers, by name.
        cache: The cache of the step, in a decoder.
        number: Its number there; -1 of a layer without one.
        held: The cache's tensors that concern it.
    """

    def __init__(self, layer: nn.Module, leaves: list[Any]) -> None:
        self.leaves = leaves
        self.tensors: list[Tensor] = []
        self._places: dict[int, int] = {}
        self.cache: StepCache | None = steps[-1] if steps else None
        self.number = next(iter(layer_numbers(layer)), -1)
        self.weights: dict[str, Tensor] = {}
        self.weights.update(layer.named_parameters(remove_duplicate=False))
        self.weights.update(layer.named_buffers(remove_duplicate=False))
        self.held = self.cache.held(self.number) if self.cache is not None else {}
        self.told = [self._tell(leaf) for leaf in leaves]
        self.told += [(name, self._tell(one)) for name, one in self.weights.items()]
        self.told += [(name, self._tell(one)) for name, one in self.held.items()]

    def _tell(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            place = self._places.setdefault(id(leaf), len(self.tensors))
            if place == len(self.tensors):
                self.tensors.append(leaf)
            return place, leaf.dtype, sizes_of(leaf)
        if isinstance(leaf, torch.SymInt):
            return "size", leaf.node.expr
        if leaf is self.cache and leaf is not None:
            return ("cache",)
        if isinstance(leaf, _PLAIN):
            return type(leaf), leaf
        raise NotAlikeError(f"a layer is given a {type(leaf).__name__}")

    def entered(self, leaf: Any, inner: Sequence[Tensor], cache: StepCache | None) -> Any:
        """What stands for a leaf inside of the layer."""
        if isinstance(leaf, Tensor):
            return inner[self._places[id(leaf)]]
        return cache if isinstance(leaf, StepCache) else leaf


def _run(
    layer: nn.Module, run: Callable[..., Any], read: _Read, spec: pytree.TreeSpec, number: int
) -> tuple[_Kind, Sequence[Tensor]]:
    """Runs a layer between its two nodes; what it gave, and the tensors that left it."""
    inner = _node(
        ENTER,
        number,
        read.tensors,
        [one.dtype for one in read.tensors],
        [one.shape for one in read.tensors],
    )
    cache = None
    if read.cache is not None:
        held = {name: read.entered(one, inner, None) for name, one in read.held.items()}
        cache = read.cache.within(read.number, held)
    leaves = [read.entered(leaf, inner, cache) for leaf in read.leaves]
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    weights = {name: read.entered(one, inner, None) for name, one in read.weights.items()}
    before = described(layer)
    with ExitStack() as stack:
        stack.enter_context(stateless._reparametrize_module(layer, weights))
        if cache is not None:
            stack.enter_context(step_cache(cache))
        made = run(*args, **kwargs)
    after, same = pytree.tree_flatten((args, kwargs))
    if same != spec or any(a is not b for a, b in zip(after, leaves, strict=True)):
        raise NotAlikeError("a layer changes what it is given")
    if described(layer) != before:  # as its weights are its own again
        raise NotAlikeError("a layer changes itself")
    given, made_spec = pytree.tree_flatten(made)
    left: list[Tensor] = []
    result: list[Any] = []
    for leaf in given:
        if isinstance(leaf, Tensor):
            result.append(_Left(len(left)))
            left.append(leaf)
        elif isinstance(leaf, (*_PLAIN, torch.SymInt)):
            result.append(leaf)
        elif leaf is cache:
            result.append(read.cache)
        else:
            raise NotAlikeError(f"a layer returns a {type(leaf).__name__}")
    present = {} if cache is None else cache.left(read.number)
    left += present.values()
    dtypes, shapes = [one.dtype for one in left], [one.shape for one in left]
    kind = _Kind(number, result, made_spec, list(present), dtypes, shapes)
    return kind, _node(LEAVE, number, left, dtypes, shapes)


def _node(
    op: str,
    kind: int,
    inputs: Sequence[Tensor],
    dtypes: Sequence[torch.dtype],
    shapes: Sequence[torch.Size],
) -> Sequence[Tensor]:
    return torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{op}", inputs, {"kind": kind}, dtypes=dtypes, shapes=shapes, version=1
    )
