"""transform: a checkpoint's module, prepared for export on tensors that hold no data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmc.errors import VlmcError
from vlmc.passes.checkpoint import TensorRef
from vlmc.passes.masks import prove_masks
from vlmc.passes.parameters import adopt_buffers, match_names, untie_different
from vlmc.passes.timm_towers import own_towers

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vlmc.families.spec import Family, ModelFacts

# Rotary variants whose frequencies depend on the length of the prompt; up to the length they
# were trained for, those they begin with hold.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True)
class TransformedModel:
    """The module to export.

    Attributes:
        module: The transformers model, parameters fake, buffers real.
        vision: The family's wrapper around it, giving image features.
        language: The language program around its decoder.
        matched: Parameter name -> checkpoint tensor name.
    """

    module: nn.Module
    vision: nn.Module
    language: nn.Module
    matched: dict[str, str]


def build_module(
    folder: Path,
    attention: str,
    own: Collection[str] = (),
    timm_tower: Callable[[Any], Any] | None = None,
    part: str | None = None,
) -> nn.Module:
    """The model of a folder on the meta device, its computed buffers real, in float32.

    No weight is read and no remote code is run.

    Args:
        folder: The checkpoint's folder.
        attention: transformers' name of the attention implementation.
        own: Parts of the configuration whose modules have attention of their own.
        timm_tower: Makes the tower, where transformers would ask timm for it.
        part: The part of the configuration that is the model, where there is one.

    Raises:
        VlmcError: transformers refuses the configuration.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForMultimodalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        config = config if part is None else getattr(config, part, config)
        parts = dict.fromkeys(("", *config.sub_configs), attention)
        parts.update(dict.fromkeys(own, "eager"))
        with own_towers(timm_tower), torch.device("meta"):
            model = AutoModelForMultimodalLM.from_config(
                config,
                attn_implementation=parts if own else attention,
                dtype=torch.float32,
                trust_remote_code=False,
            )
    except (StrictDataclassError, ValueError) as error:
        raise VlmcError(
            f"transformers refuses this configuration: {error}", at=str(folder / "config.json")
        ) from error
    except KeyError as error:
        if error.args != (attention,):
            raise
        # As Falcon does, which looks its attention up in a table of its own.
        raise VlmcError(
            "a part of this model has attention of its own, which cannot be replaced",
            at=str(folder / "config.json"),
        ) from error
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._buffers[leaf] = torch.empty_like(buffer, device="cpu")
    # Rotary frequencies, position indices: computed by the model's own initialization.
    model.initialize_weights()
    model.eval().requires_grad_(False)
    module: nn.Module = model
    return module


def transform(
    folder: Path, family: Family, facts: ModelFacts, index: Mapping[str, TensorRef], ctx_len: int
) -> TransformedModel:
    """Builds the module and prepares it: fake parameters, neutral linears, fixed rotary.

    Args:
        folder: The checkpoint's folder; its JSON files are read.
        family: The row of ``FAMILIES`` that serves it.
        facts: What its JSON files say.
        index: The checkpoint's tensors.
        ctx_len: Length of the cache, in tokens.

    Raises:
        VlmcError: A part of the model cannot be exported faithfully.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from vlmc.passes.experts import prepare_experts
    from vlmc.passes.language_program import LanguageProgram
    from vlmc.passes.modules import ATTENTION, neutral_linear, register_attention
    from vlmc.passes.recurrent import prepare_recurrent

    register_attention()
    model: Any = build_module(
        folder, ATTENTION, family.own_attention, family.timm_tower, family.part
    )
    if facts.masks:
        prove_masks(model, facts.masks, family.create_masks)
    matched = match_names(model, index)
    adopt_buffers(model, matched)
    untie_different(model, index, matched)
    prepare_experts(model, index, matched)
    prepare_recurrent(model)
    _fix_rotary(model, ctx_len)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        made: dict[int, torch.nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in made:
                    made[id(parameter)] = torch.nn.Parameter(
                        torch.empty(parameter.shape, dtype=torch.float32), requires_grad=False
                    )
                module._parameters[name] = made[id(parameter)]
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.forward = neutral_linear(module)  # type: ignore[method-assign, assignment]
    decoder = family.decoder(model)
    finish = None if family.logits is None else partial(family.logits, model)
    begin = None if family.embeds is None else partial(family.embeds, model)
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    language = LanguageProgram(decoder, embed, head, facts, finish, begin)
    return TransformedModel(model, family.vision(model), language, matched)


def _fix_rotary(model: torch.nn.Module, ctx_len: int) -> None:
    for name, module in model.named_modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, dict):  # one for each kind of layer
            for each in set(LENGTH_DEPENDENT_ROPE) & set(kind.values()):
                raise VlmcError(
                    f"'{each}' rotary embeddings of some layers alone ({name}) are not supported",
                    at="config.json: text_config.rope_parameters",
                )
            continue
        if kind not in LENGTH_DEPENDENT_ROPE:
            continue
        trained = int(module.original_max_seq_len)
        if kind == "longrope":  # where the factors change, the class reads the configuration
            trained = int(module.config.rope_parameters["original_max_position_embeddings"])
        if ctx_len > trained:
            raise VlmcError(
                f"'{kind}' rotary embeddings ({name}) change with the prompt's length beyond "
                f"{trained} tokens; ctx-len is {ctx_len}",
                at="ctx-len",
                hint=f"use a ctx-len of at most {trained}",
            )
        module.rope_type = "default"  # frequencies are as they were made, from here on
