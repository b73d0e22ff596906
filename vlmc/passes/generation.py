"""What a checkpoint says of generating: end tokens, suggestions, what is done to logits."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from vlmc.bundle.manifest import GenerationSpec, LogitsSpec
from vlmc.errors import VlmcError
from vlmc.schema import Json

_AT = "generation_config.json"
# What a generation config may suggest for sampling.
_SUGGESTED = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_LOGITS = tuple(set(LogitsSpec.model_fields) - {"forced_eos_token_ids"})
# What else changes transformers' greedy answers, and the value of each that does not. Left out:
# what it applies to sampling or encoders alone, and what moves no logit above another.
_LEFT_OUT: Mapping[str, Collection[object]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "guidance_scale": (1,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "penalty_alpha": (),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "stop_strings": (),
    "max_time": (),
    "token_healing": (False,),
}


def read_generation(
    config: Json,
    generation: Json,
    *,
    ends: Sequence[int] | None = None,
    unused: Collection[str] = (),
) -> GenerationSpec:
    """From ``generation_config.json``; where there is none, from ``config.json``.

    Mirrors ``GenerationConfig.from_pretrained`` and, for ``config.json``, ``from_model_config``,
    where what the model itself does not say is its text part's.

    Args:
        config: ``config.json``.
        generation: ``generation_config.json``; empty: there is none.
        ends: The end tokens where the decoder's own ``generate`` runs, which knows none of this.
        unused: Settings that the model's ``generate`` puts aside.

    Raises:
        VlmcError: A value is not of its kind.
    """
    text = config.get("text_config")
    holders = [generation] if generation else [config, text if isinstance(text, dict) else {}]

    def said(key: str) -> Any:
        return next((h[key] for h in holders if h.get(key) is not None), None)

    at = _AT if generation else "config.json"
    suggested = {key: said(key) for key in _SUGGESTED if said(key) is not None}
    if ends is not None:
        return GenerationSpec(eos_token_ids=tuple(ends), suggested=suggested)
    left_out = {
        key: said(key)
        for key, neutral in _LEFT_OUT.items()
        if key not in unused and said(key) is not None and said(key) not in neutral
    }
    return GenerationSpec(
        eos_token_ids=_ids(said("eos_token_id"), f"{at}: eos_token_id"),
        suggested=suggested,
        logits=_logits(
            {key: said(key) for key in _LOGITS if said(key) is not None},
            _ids(said("forced_eos_token_id"), f"{at}: forced_eos_token_id"),
            at,
        ),
        left_out=left_out,
    )


def _ids(value: Any, at: str) -> tuple[int, ...]:
    """Of a token id, a list of them, or nothing."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise VlmcError(f"{value!r} is no token id", at=at)
    return tuple(ids)


def _logits(values: Json, forced: tuple[int, ...], at: str) -> LogitsSpec:
    try:
        # As JSON, whose lists are tuples.
        return LogitsSpec.model_validate_json(
            json.dumps({**values, "forced_eos_token_ids": forced})
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise VlmcError(first["msg"], at=f"{at}: {place}") from error
