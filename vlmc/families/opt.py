"""OPT as a text model: sizes under names of its own, a feed-forward without a gate.

Mirrors ``transformers.models.opt`` (``OPTConfig``, ``OPTForCausalLM``).
"""

from __future__ import annotations

from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, whole
from vlmc.families.spec import TextFacts
from vlmc.schema import Json


def opt_facts(config: Json, *, at: str) -> TextFacts:
    """The decoder's sizes, with the defaults of ``OPTConfig``.

    Args:
        config: The text configuration.
        at: Its place, for errors.

    Raises:
        VlmcError: A size makes no sense, or tokens are embedded in another width than the layers'
            (OPT 350M), where image features would have no place.
    """
    hidden = whole(config, "hidden_size", 768, at=at)
    heads = whole(config, "num_attention_heads", 12, at=at)
    if hidden % heads:
        raise VlmcError(f"hidden size {hidden} does not divide into {heads} heads", at=at)
    if (width := whole(config, "word_embed_proj_dim", hidden, at=at)) != hidden:
        raise VlmcError(
            f"tokens are embedded in {width} numbers, the layers have {hidden}: "
            "image features fit one of them only",
            at=f"{at}: word_embed_proj_dim",
        )
    return TextFacts(
        model_type="opt",
        layers=whole(config, "num_hidden_layers", 12, at=at, most=MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocab=whole(config, "vocab_size", 50272, at=at),
        max_positions=whole(config, "max_position_embeddings", 2048, at=at),
    )


def opt_weights(config: Json, facts: TextFacts, *, at: str) -> tuple[int, int, int]:
    """Numbers in layers and learned positions, in the embedding, and in the output projection."""
    inner = whole(config, "ffn_dim", 3072, at=at)
    layers = facts.layers * facts.hidden * (4 * facts.hidden + 2 * inner)
    positions = (facts.max_positions or 0) * facts.hidden
    table = facts.vocab * facts.hidden
    tied = config.get("tie_word_embeddings", True) is not False
    return layers + positions, table, 0 if tied else table
