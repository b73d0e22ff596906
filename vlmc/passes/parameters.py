"""Which checkpoint tensor fills which parameter of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vlmc.errors import VlmcError
from vlmc.passes.checkpoint import TensorRef, read_rows

if TYPE_CHECKING:
    from torch import nn

_SHOWN = 5
# Matrices of experts [E, n, m]; checkpoints may hold them as [E, m, n].
_EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


def canonical_names(model: nn.Module) -> dict[int, str]:
    """First name in the model by id of parameter; tied ones have one name."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def match_names(model: Any, index: Mapping[str, TensorRef]) -> dict[str, str]:
    """Parameter name -> checkpoint tensor name, by transformers' own renaming rules.

    Tensors that transformers would split or merge are left out; those it would only transpose
    (matrices of experts, where their shape asks for it) are not.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Transpose, WeightConverter, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if not isinstance(t, WeightConverter)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    state = dict(model.state_dict())
    transposed = {
        pattern
        for converter in converters
        if all(type(operation) is Transpose for operation in converter.operations)
        for pattern in converter.source_patterns
    }
    matched: dict[str, str] = {}
    for key in index:
        name, converted = rename_source_key(
            key, renamings, converters, model.base_model_prefix, state
        )
        if (converted is None or converted in transposed) and name in state:
            matched.setdefault(name, key)
    return matched


def adopt_buffers(model: nn.Module, matched: Mapping[str, str]) -> None:
    """Makes parameters of the buffers that the checkpoint holds, such as a layer's factor.

    They are trained numbers as parameters are, and read like them; the others are computed.
    """
    import torch

    for name, buffer in list(model.named_buffers()):
        if name not in matched or not buffer.is_floating_point():
            continue
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        del module._buffers[leaf]
        module._parameters[leaf] = torch.nn.Parameter(buffer, requires_grad=False)


def untie_different(model: Any, index: Mapping[str, TensorRef], matched: Mapping[str, str]) -> None:
    """Undoes ties that the checkpoint contradicts, as transformers' ``tie_weights`` does.

    A configuration may say that the head is the embedding while the checkpoint holds both;
    they are tied only if they are equal.
    """
    import torch

    for target, source in list(model.all_tied_weights_keys.items()):
        if target not in matched or source not in matched:
            continue
        if same_values(index[matched[target]], index[matched[source]]):
            continue
        owner, _, leaf = target.rpartition(".")
        module = model.get_submodule(owner)
        module._parameters[leaf] = torch.nn.Parameter(
            torch.empty_like(module._parameters[leaf]), requires_grad=False
        )
        del model.all_tied_weights_keys[target]


def parameter_sources(
    model: Any,
    index: Mapping[str, TensorRef],
    matched: Mapping[str, str],
    parameters: Iterable[str],
) -> dict[str, str]:
    """The checkpoint tensor of each parameter the programs use.

    Args:
        model: The transformers model, on any device.
        index: The checkpoint's tensors.
        matched: What ``match_names`` found.
        parameters: Canonical names.

    Raises:
        VlmcError: A parameter has no tensor, or one of another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    aliases = _aliases(model)
    sources: dict[str, str] = {}
    missing: list[str] = []
    for name in parameters:
        holder = next((n for n in aliases.get(name, [name]) if n in matched), None)
        if holder is None:
            missing.append(name)
            continue
        key = matched[holder]
        turned = name.endswith(_EXPERTS) and index[key].shape == _turned(shapes[name])
        if index[key].shape != shapes[name] and not turned:
            raise VlmcError(
                f"tensor '{key}' has shape {list(index[key].shape)}, but the configuration "
                f"makes it {list(shapes[name])}",
                at=index[key].path.name,
                hint="config.json and the weights are not of the same model",
            )
        sources[name] = key
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise VlmcError(
            f"the checkpoint has no tensor for {', '.join(missing[:_SHOWN])}{more}",
            hint="is this the checkpoint of another model, or of a part of it?",
        )
    return sources


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], *shape[:-3:-1])


def same_values(first: TensorRef, second: TensorRef) -> bool:
    """Whether two stored tensors are equal; read in blocks of rows, up to the first difference."""
    if first.shape != second.shape:
        return False
    step = max(1, (1 << 23) // max(1, first.nbytes // first.shape[0]))
    return all(
        bool((read_rows(first, at, end) == read_rows(second, at, end)).all())
        for at in range(0, first.shape[0], step)
        for end in (min(at + step, first.shape[0]),)
    )


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """Canonical name -> every name of that parameter."""
    first = canonical_names(model)
    aliases: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(first[id(parameter)], []).append(name)
    return aliases
