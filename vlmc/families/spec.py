"""What a family is: data, and a few small functions. One page to read before adding one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import (
    ImageLayout,
    ImageSpec,
    MaskSpec,
    PictureAhead,
    PositionSpec,
    PromptFrame,
    TensorSpec,
)
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TextFacts:
    """Sizes of the decoder, read from ``text_config`` with transformers' defaults filled in."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int | None


@dataclass(frozen=True)
class WeightCounts:
    """How many numbers the parts of a model hold, from its sizes; small tensors left out.

    ``head`` is 0 where the output projection is the embedding's own table.
    """

    vision: int
    language: int
    embedding: int
    head: int


@dataclass(frozen=True)
class StateFacts:
    """What a layer remembers in the place of keys and values: a state that each step replaces.

    Attributes:
        layer: Its number.
        shape: Of one row, float32.
    """

    layer: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFacts:
    """All a plan needs to know of a checkpoint, from its JSON files alone (no torch)."""

    text: TextFacts
    image_token_id: int
    images: ImageSpec
    positions: PositionSpec
    vision_inputs: tuple[TensorSpec, ...]  # of one image; free dimensions are named
    image_tokens: Callable[[int, int], int]  # (height, width) in pixels -> tokens in the prompt
    min_image_tokens: int
    weights: WeightCounts | None = None  # for estimates; None where the sizes are not known
    # Free dimensions of vision_inputs that are always a multiple of a number.
    multiples: Mapping[str, int] = field(default_factory=dict)
    # What each kind of the decoder's layers attends to; none: the transform pass proves it causal.
    masks: tuple[MaskSpec, ...] = ()
    # What the processor puts around an image's tokens; ``{boi_token}`` and the like stand for the
    # tokenizer's special token of that name. None: nothing.
    image_layout: ImageLayout | None = None
    opening: str = ""  # what the processor writes before every prompt
    closing: str = ""  # and behind it; special tokens by name, as in a layout
    # Deep-stack features: for each further row of an image token, how many of the decoder's
    # layers have run when it is added to the token's hidden state.
    deepstack: tuple[int, ...] = ()
    # The decoder's layers that have no keys and values, in order.
    states: tuple[StateFacts, ...] = ()
    looks_up_tokens: bool = False  # the vision program reads rows of the token embedding
    most_images: int | None = None  # that the processor takes in a prompt; None: any number

    def memory(self) -> tuple[tuple[str, int], ...]:
        """Kind and layer of each tensor that the language program hands from step to step."""
        without = {state.layer for state in self.states}
        found: list[tuple[str, int]] = []
        for layer in range(self.text.layers):
            kinds = ("state",) if layer in without else ("key", "value")
            found += [(kind, layer) for kind in kinds]
        return tuple(found)


@dataclass(frozen=True)
class Checkpoint:
    """The JSON files of a model folder, parsed; absent files are empty mappings.

    ``image_bounds`` are the recipe's (``min_pixels``, ``max_pixels``, ``max_tiles``); they replace
    the image processor's own.
    """

    config: Json
    processor: Json  # processor_config.json
    image_processor: Json  # preprocessor_config.json, or its section of processor_config.json
    generation: Json
    tokenizer_config: Json
    image_bounds: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One row of ``FAMILIES``.

    Attributes:
        name: The key of the row and the word users read.
        title: What people call it.
        model_types: Values of ``model_type`` in ``config.json`` that it serves.
        special_tokens: Whether the tokenizer adds its own to a prompt that does not begin with one.
        tower: The ``model_type`` of the vision towers it serves, where another row serves the
            same ``model_types`` with all other towers; None: every tower.
        facts: Reads a checkpoint's JSON; raises ``VlmcError`` for a variant it cannot serve.
        vision: Wraps the loaded module for export: an ``nn.Module`` whose ``forward`` takes
            the tensors of ``ModelFacts.vision_inputs`` (one image) in order, and returns
            ``image_features [tokens, hidden]``; with them, where ``ModelFacts.deepstack`` is not
            empty, ``deepstack_features [tokens, len(deepstack), hidden]``.
        decoder: The module that takes ``inputs_embeds``, ``position_ids`` and
            ``past_key_values``.
        example: Sizes for the free dimensions of ``vision_inputs`` when tracing.
        plain_image: What an image becomes in a prompt where there is no chat template; ``{image}``
            is the checkpoint's own word for an image.
        template: The chat template of checkpoints that have none; None: the plain format.
        image_frame: The tokenizer's names of the special tokens before and after an image's
            placeholders, where the processor puts them there and not the chat template.
        frame: What the processor adds to every prompt, special tokens by name; it takes none
            without an image.
        ahead: Where the processor writes the prompt's one picture ahead of its text, what it puts
            around the two.
        extra_tokens: Words that the processor adds to the tokenizer.
        logits: What the model does to its head's logits, a soft cap say: ``(model, logits) ->
            logits``, for export; None: nothing.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    facts: Callable[[Checkpoint], ModelFacts]
    vision: Callable[[nn.Module], nn.Module]
    decoder: Callable[[nn.Module], nn.Module]
    example: dict[str, int]
    plain_image: str
    template: str | None = None
    image_frame: tuple[str, str] | None = None
    special_tokens: bool = True
    tower: str | None = None
    frame: PromptFrame | None = None
    ahead: PictureAhead | None = None
    extra_tokens: tuple[str, ...] = ()
    logits: Callable[[Any, Any], Any] | None = None
