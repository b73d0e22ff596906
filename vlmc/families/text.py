"""Sizes of a decoder from its JSON, with the defaults its configuration class would fill in.

Checkpoints leave out what equals the default of the class that saved them, so the table repeats
those defaults (transformers 5.23, ``configuration_*.py``); a test compares it with the classes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, whole, word
from vlmc.families.spec import TextFacts
from vlmc.schema import Json

CONFIG = "config.json"


@dataclass(frozen=True)
class TextDefaults:
    """Defaults of one text configuration class.

    ``kv_heads`` None: as many as ``heads``; ``head_dim`` None: ``hidden // heads``. ``grouped``
    False: always as many as ``heads``, whatever the file says; ``trained``:
    ``original_max_position_embeddings``; ``intermediate`` 0: experts alone; ``gated`` False: a
    feed-forward of two matrices; ``uneven``: a width that does not divide into the heads is rounded
    down.
    """

    layers: int
    hidden: int
    heads: int
    vocab: int
    positions: int
    intermediate: int
    kv_heads: int | None = None
    head_dim: int | None = None
    tied: bool = False
    grouped: bool = True
    trained: int | None = None
    gated: bool = True
    uneven: bool = False


TEXT_DEFAULTS = {
    "aria_text": TextDefaults(32, 4096, 32, 32000, 2048, 4096),
    "chameleon": TextDefaults(32, 4096, 32, 65536, 4096, 11008, 32),
    "cohere": TextDefaults(40, 8192, 64, 256000, 8192, 22528, tied=True),
    "cohere2": TextDefaults(40, 8192, 64, 256000, 8192, 22528, tied=True),
    "cohere_compass_text": TextDefaults(40, 8192, 64, 256000, 8192, 22528, tied=True),
    "cosmos3_edge_text": TextDefaults(28, 2048, 16, 131072, 131072, 9216, 8, 128, gated=False),
    "ernie4_5_vl_moe_text": TextDefaults(28, 2560, 20, 103424, 131072, 12288, 4, tied=True),
    "exaone4": TextDefaults(32, 4096, 32, 102400, 2048, 16384, 32),
    "gemma": TextDefaults(28, 3072, 16, 256000, 8192, 24576, 16, 256, tied=True),
    "gemma2": TextDefaults(26, 2304, 8, 256000, 8192, 9216, 4, 256, tied=True),
    "gemma4_unified_text": TextDefaults(30, 2304, 8, 262144, 262144, 9216, 4, 256, tied=True),
    "glm4v_text": TextDefaults(40, 4096, 32, 151552, 32768, 13696, 2),
    "glm4v_moe_text": TextDefaults(46, 4096, 96, 151424, 65536, 10944, 8, uneven=True),
    "glm_ocr_text": TextDefaults(16, 1024, 16, 59392, 131072, 4096, 8),
    "gemma3_text": TextDefaults(26, 2304, 8, 262208, 131072, 9216, 4, 256, tied=True),
    "gemma3n_text": TextDefaults(35, 2048, 8, 262400, 32768, 16384, 2, 256, tied=True),
    "gemma4_text": TextDefaults(30, 2304, 8, 262144, 131072, 9216, 4, 256, tied=True),
    "gpt_neox": TextDefaults(44, 6144, 64, 50432, 2048, 24576, grouped=False, gated=False),
    "granite": TextDefaults(32, 4096, 32, 32000, 2048, 11008),
    "granite_docling_text": TextDefaults(28, 1024, 16, 133800, 32768, 2048, 4, tied=True),
    "granite4_vision_text": TextDefaults(32, 4096, 32, 32000, 2048, 11008),
    "hunyuan_vl_text": TextDefaults(32, 4096, 32, 290943, 2048, 11008, tied=True),
    "hyperclovax": TextDefaults(32, 4096, 32, 32000, 2048, 11008),
    "lfm2": TextDefaults(32, 2560, 32, 65536, 128000, 12288, 8, tied=True),
    "lfm3": TextDefaults(24, 2048, 16, 128000, 128000, 7680, 4, 128, tied=True),
    "llama": TextDefaults(32, 4096, 32, 32000, 2048, 11008),
    "llama4_text": TextDefaults(48, 5120, 40, 202048, 131072, 8192, 8, 128),
    "ministral": TextDefaults(32, 4096, 32, 32000, 131072, 14336, 8),
    "ministral3": TextDefaults(34, 4096, 32, 131072, 262144, 14336, 8, 128),
    "mistral": TextDefaults(32, 4096, 32, 32000, 131072, 14336, 8),
    "molmo2_text": TextDefaults(36, 4096, 32, 151936, 36864, 12288, 8, 128),
    "olmo2": TextDefaults(32, 4096, 32, 50304, 2048, 11008),
    "paddleocr_vl_text": TextDefaults(18, 1024, 16, 103424, 131072, 3072, 2, 128, tied=True),
    "persimmon": TextDefaults(36, 4096, 64, 262144, 16384, 16384, grouped=False, gated=False),
    "phi3": TextDefaults(32, 3072, 32, 32064, 4096, 8192, trained=4096),
    "phi4_multimodal": TextDefaults(32, 3072, 32, 200064, 131072, 8192, 8, trained=4096),
    "qwen2": TextDefaults(32, 4096, 32, 151936, 32768, 22016, 32),
    "qwen2_5_omni_text": TextDefaults(28, 3584, 28, 152064, 32768, 18944, 4, tied=True),
    "qwen2_5_vl_text": TextDefaults(80, 8192, 64, 152064, 32768, 29568, 8),
    "qwen2_vl_text": TextDefaults(80, 8192, 64, 152064, 32768, 29568, 8),
    "qwen3": TextDefaults(32, 4096, 32, 151936, 32768, 22016, 32, 128),
    "qwen3_5_moe_text": TextDefaults(40, 2048, 16, 248320, 32768, 0, 2, 256),
    "qwen3_5_text": TextDefaults(32, 4096, 16, 248320, 32768, 12288, 4, 256),
    "qwen3_omni_moe_text": TextDefaults(28, 2048, 28, 3584, 32768, 18944, 4, uneven=True),
    "qwen3_vl_text": TextDefaults(32, 4096, 32, 151936, 128000, 22016, 32, 128),
    "qwen3_vl_moe_text": TextDefaults(24, 2048, 16, 151936, 128000, 5632, 16, tied=True),
    "smollm3": TextDefaults(36, 2048, 16, 128256, 32768, 11008, 4, tied=True),
    "stablelm": TextDefaults(32, 2560, 32, 50304, 4096, 6912, 32),
    "starcoder2": TextDefaults(30, 3072, 24, 49152, 4096, 12288, 2, tied=True, gated=False),
}


def text_facts(config: Json, model_type: str, *, at: str = f"{CONFIG}: text_config") -> TextFacts:
    """The decoder's sizes.

    Args:
        config: The text configuration, as it lies in the file.
        model_type: What kind of decoder it is.
        at: Its place, for errors.

    Raises:
        VlmcError: A size is missing and the kind is not in the table, or makes no sense.
    """
    known = TEXT_DEFAULTS.get(model_type)

    def size(key: str, default: int | None) -> int:
        return whole(config, key, default, at=at)

    try:
        layers = whole(
            config, "num_hidden_layers", known.layers if known else None, at=at, most=MAX_LAYERS
        )
        hidden = size("hidden_size", known.hidden if known else None)
        heads = size("num_attention_heads", known.heads if known else None)
        vocab = size("vocab_size", known.vocab if known else None)
    except VlmcError as error:
        if known is None and error.message.endswith("is missing"):
            raise _unknown(model_type, error) from None
        raise
    kv_heads = size("num_key_value_heads", _absent(config, "num_key_value_heads", known, heads))
    if known is not None and not known.grouped:
        kv_heads = heads
    head_dim = _head_dim(config, known, hidden, heads, at)
    if "kv_lora_rank" in config:
        # Latent attention (DeepSeek-V2): what is attended to has every head. ``head_dim`` is
        # something else there.
        kv_heads, head_dim = heads, size("qk_nope_head_dim", None) + size("qk_rope_head_dim", None)
    if heads % kv_heads:
        message = f"{heads} attention heads cannot share {kv_heads} key/value heads"
        raise VlmcError(message, at=at)
    positions = config.get("max_position_embeddings")
    if positions is None:
        positions = known.positions if known else None
    else:
        positions = size("max_position_embeddings", None)
    trained = _trained(config, known, at)
    if trained is not None:
        positions = trained if positions is None else min(positions, trained)
    return TextFacts(model_type, layers, hidden, heads, kv_heads, head_dim, vocab, positions)


def layer_kinds(
    config: Json, default: Sequence[str], allowed: Collection[str], *, at: str
) -> tuple[str, ...]:
    """The kinds of the decoder's layers, each once, in the order of the alphabet.

    Args:
        config: The text configuration.
        default: The kinds where ``layer_types`` is absent or null.
        allowed: Those that are known.
        at: The configuration's place, for errors.

    Raises:
        VlmcError: A kind is none of ``allowed``.
    """
    found = config.get("layer_types")
    kinds = default if found is None else found if isinstance(found, list) else [found]
    for kind in kinds:
        word({"layer_types": kind}, "layer_types", "", allowed, at=at)
    return tuple(sorted(set(kinds)))


def text_weights(config: Json, facts: TextFacts, *, tied: bool | None) -> tuple[int, int, int]:
    """Numbers in the decoder's layers, its embedding, and its output projection.

    Counts a feed-forward, gated where the kind is not known, and four attention projections.

    Args:
        config: The text configuration.
        facts: Its sizes.
        tied: Whether the output projection is the embedding; None: as the text configuration or
            its class says.
    """
    known = TEXT_DEFAULTS.get(facts.model_type)
    inner = config.get("intermediate_size") or (known.intermediate if known else 4 * facts.hidden)
    if not isinstance(inner, int):
        inner = 4 * facts.hidden
    width = facts.head_dim * (2 * facts.heads + 2 * facts.kv_heads)
    matrices = 2 if known is not None and not known.gated else 3
    layers = facts.layers * facts.hidden * (width + matrices * inner)
    table = facts.vocab * facts.hidden
    if tied is None:
        said = config.get("tie_word_embeddings")
        tied = said if isinstance(said, bool) else bool(known and known.tied)
    return layers, table, 0 if tied else table


def _absent(config: Json, key: str, known: TextDefaults | None, heads: int) -> int:
    """The key/value heads where no number is given: an explicit null means one per head."""
    if key in config or known is None or known.kv_heads is None:
        return heads
    return known.kv_heads


def _trained(config: Json, known: TextDefaults | None, at: str) -> int | None:
    """The length where longrope changes its factors for all of a prompt; None: it never does."""
    key = "original_max_position_embeddings"
    rotary = config.get("rope_parameters") or config.get("rope_scaling")
    own = known.trained if known else None
    # The classes with a length of their own take its older names too.
    names = ("longrope",) if own is None else ("longrope", "su", "yarn")
    if not isinstance(rotary, dict) or rotary.get("rope_type", rotary.get("type")) not in names:
        return None
    if key in rotary:
        return whole(rotary, key, at=at)
    return whole(config, key, own, at=at) if own is not None or key in config else None


def _head_dim(config: Json, known: TextDefaults | None, hidden: int, heads: int, at: str) -> int:
    fixed = None if "head_dim" in config or known is None else known.head_dim
    if config.get("head_dim") is not None or fixed is not None:
        return whole(config, "head_dim", fixed, at=at)
    if hidden % heads and not (known and known.uneven):
        raise VlmcError(f"hidden size {hidden} does not divide into {heads} heads", at=at)
    return hidden // heads


def _unknown(model_type: str, error: VlmcError) -> VlmcError:
    return VlmcError(
        f"{error.message}, and the defaults of the text model '{model_type}' are not known",
        at=error.at,
        allowed=TEXT_DEFAULTS,
        got=model_type,
        hint="write the sizes out in config.json, or choose a model of a known kind",
    )
