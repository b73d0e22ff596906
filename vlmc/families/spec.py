"""What a family is: data, and a few small functions. One page to read before adding one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vlmc.bundle.manifest import (
    ImageLayout,
    ImageSpec,
    MaskSpec,
    PictureAhead,
    PositionSpec,
    PromptFrame,
    TensorSpec,
    VisionText,
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
        layer: Its number. A layer may have one state of each kind.
        shape: Of one row, float32.
        kind: ``state``, the last inputs of a convolution; ``matrix``, what a recurrent rule has
            added up.
    """

    layer: int
    shape: tuple[int, ...]
    kind: Literal["state", "matrix"] = "state"


@dataclass(frozen=True)
class ModelFacts:
    """All a plan needs to know of a checkpoint, from its JSON files alone (no torch)."""

    text: TextFacts
    image_token_id: int | None  # None: that of the family's ``image_token``
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
    # What the processor writes before every prompt, and behind it; special tokens by name.
    opening: str = ""
    closing: str = ""
    # Tokens around an image's tiles that take rows of its features, behind the others; as many as
    # the geometry's ``marks``.
    mark_token_ids: tuple[int, ...] = ()
    # The tokenizer's names of tokens beside an image's that are its own to the decoder
    # (``Family.embeds``), with embeddings of their own; not among those of an answer.
    beside_tokens: tuple[str, ...] = ()
    opening_once: bool = False  # only before those that do not begin with it
    # Ids that the embedding knows, where the head knows fewer; None: ``text.vocab``.
    token_ids: int | None = None
    # Deep-stack features: for each further row of an image token, how many of the decoder's
    # layers have run when it is added to the token's hidden state.
    deepstack: tuple[int, ...] = ()
    max_images: int | None = None  # most that a prompt may have, where the model itself limits it
    vision_text: VisionText | None = None  # what the vision program reads of the prompt
    # End tokens where the model's generate() is that of the decoder inside, which knows its own
    # configuration alone; None: those of the checkpoint's generation configuration.
    ends: tuple[int, ...] | None = None
    # Settings of generation that the model's own generate() puts aside for texts.
    unused_generation: tuple[str, ...] = ()
    # States of the decoder's layers that have no keys and values, in the layers' order.
    states: tuple[StateFacts, ...] = ()
    # Layers that read the keys and values of another, an earlier one: layer -> that one.
    owners: Mapping[int, int] = field(default_factory=dict)
    # Layers whose key/value heads are not those of ``text``: layer -> how many, and their size.
    kv_heads: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    # The vision program reads weights of the language program: rows of the token embedding, say.
    looks_up_tokens: bool = False

    # Attention heads of the tower, where ``Family.tensors`` takes its tensors apart by them.
    tower_heads: int = 1

    def memory(self) -> tuple[tuple[str, int], ...]:
        """Kind and layer of each tensor that the language program hands from step to step."""
        states: dict[int, list[str]] = {}
        for state in self.states:
            states.setdefault(state.layer, []).append(state.kind)
        found: list[tuple[str, int]] = []
        for layer in range(self.text.layers):
            if layer not in self.owners:
                found += [(kind, layer) for kind in states.get(layer, ("key", "value"))]
        return tuple(found)

    def heads_of(self, layer: int) -> tuple[int, int]:
        """A layer's key/value heads, and their size."""
        return self.kv_heads.get(layer, (self.text.kv_heads, self.text.head_dim))


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
            placeholders, where the processor puts them there and not the chat template; or the
            tokens themselves.
        frame: What the processor adds to every prompt, special tokens by name; it takes none
            without an image.
        ahead: Where the processor writes the prompt's one picture ahead of its text, what it puts
            around the two.
        extra_tokens: Words that the processor adds to the tokenizer.
        leading_images: Whether the processor puts an image's tokens before the whole prompt, which
            then has no place for one, and the model takes no prompt without an image.
        leading_text: With ``leading_images``, what an image is in the text, which it begins.
        image_token: The placeholder, where no configuration has its id.
        numbered_after: The tokenizer's name of the special token behind whose id those of an
            image's tokens count up; None: all are the placeholder's.
        folders: Folders of the checkpoint whose tokenizers are read too.
        logits: What the model does to its head's logits, a soft cap say: ``(model, logits) ->
            logits``, for export; None: nothing.
        embeds: What the decoder is given for a step's tokens, where it is more than embeddings
            and features: ``(model, embeds [B, S, H], ids [B, S], is_image [B, S]) -> the
            decoder's arguments``, ``inputs_embeds`` among them; None: those alone.
        create_masks: What ``generate`` masks with, where the model's ``create_masks_for_generate``
            makes other masks: its arguments, ``mm_token_type_ids`` int64 ``[1, L]`` among them.
        part: The part of the configuration that is the model, where there is one: what speaks, say,
            beside what writes.
        own_attention: Parts of the configuration whose modules have attention of their own, which
            is exported as it is written.
        timm_tower: Makes the tower where transformers would ask timm for it: ``(vision
            configuration) -> module`` with timm's parameter names; None: transformers has it.
        reference: Prepares transformers' model to be compared with: where it has no
            ``get_image_features``, or answers otherwise with eager attention than by default.
        tensors: The checkpoint's tensors as the model has them, where it stores some packed
            together or apart: ``(tensors by name, facts) -> the same``, no data read; None: as
            they are.
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
    leading_images: bool = False
    leading_text: str | None = None
    image_token: str | None = None
    numbered_after: str | None = None
    folders: tuple[str, ...] = ()
    logits: Callable[[Any, Any], Any] | None = None
    embeds: Callable[[Any, Any, Any, Any], dict[str, Any]] | None = None
    create_masks: Callable[..., dict[str, Any]] | None = None
    part: str | None = None
    own_attention: tuple[str, ...] = ()
    timm_tower: Callable[[Any], nn.Module] | None = None
    reference: Callable[[Any], None] | None = None
    tensors: Callable[[Mapping[str, Any], ModelFacts], dict[str, Any]] | None = None
