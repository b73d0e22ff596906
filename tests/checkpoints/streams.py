"""Small checkpoints whose decoder carries several streams, and whose tower timm would make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import randomize, save, text_config, tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + "
    "('model' if message['role'] == 'assistant' else message['role']) }}\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<image_soft_token>' }}{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
BREAKS = ["\n\n one \n\n two \n\n"] * 8


def blocks() -> list[list[dict[str, Any]]]:
    """One stage of each kind of block, as ``decode_arch_def`` of timm writes them."""
    edge = {"block_type": "er", "exp_kernel_size": 3, "exp_ratio": 2.0, "act_layer": None}
    wide = {"block_type": "uir", "exp_ratio": 2.0, "act_layer": None}
    seen = {"block_type": "mqa", "dw_kernel_size": 3, "num_heads": 3, "act_layer": None}
    sizes = {"key_dim": 16, "value_dim": 16}
    whole = {**wide, "dw_kernel_size_start": 3, "dw_kernel_size_mid": 5}
    flat = {**wide, "dw_kernel_size_mid": 0}
    return [
        [{**edge, "out_chs": 8, "stride": 2}, {**edge, "out_chs": 8, "stride": 1}],
        [
            {**whole, "out_chs": 16, "stride": 2},
            {**flat, "dw_kernel_size_start": 5, "out_chs": 16, "stride": 1},
        ],
        [
            {**whole, "out_chs": 16, "stride": 2},
            {**seen, **sizes, "kv_stride": 2, "out_chs": 16, "stride": 1},
            {**flat, "out_chs": 16, "stride": 1},
        ],
        [
            {**whole, "out_chs": 24, "stride": 2},
            {**seen, **sizes, "out_chs": 24, "stride": 1},
            {**flat, "out_chs": 24, "stride": 1},
        ],
    ]


def gemma3n(
    folder: Path,
    *,
    seed: int = 1,
    side: int = 64,
    template: str | None = TEMPLATE,
    tower: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A Gemma 3n of four tokens a picture; the last two of four layers read others' keys.

    Its largest ids are marks of pictures and of sounds, which have tables of their own.
    """
    import transformers as hf

    from vlmc.families.gemma3n import tower as make
    from vlmc.passes.timm_towers import own_towers

    named = {
        "boi_token": "<start_of_image>",
        "boa_token": "<start_of_audio>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
        "eoa_token": "<end_of_audio>",
        "audio_token": "<audio_soft_token>",
    }
    begins = [named.pop("boi_token"), named.pop("boa_token")]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    words = tokenizer(
        ["<pad>", "<eos>", "<bos>", *turns, *begins],
        bos="<bos>",
        eos="<eos>",
        template=None,
        sentences=BREAKS,
    )
    count = len(words)
    words.add_tokens(list(named.values()), special_tokens=True)
    named |= {"boi_token": begins[0], "boa_token": begins[1]}
    words._set_model_specific_special_tokens(named)
    ids = {name: words.convert_tokens_to_ids(token) for name, token in named.items()}
    values = {
        "head_dim": 16,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "sliding_window": 24,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": count,
        "laurel_rank": 8,
        "altup_num_inputs": 3,
        "altup_active_idx": 1,
        "activation_sparsity_pattern": [0.8, 0.0, 0.6, 0.0],
        "final_logit_softcapping": 8.0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        **values,
    }
    config = hf.Gemma3nConfig(
        vision_config={
            "model_args": tower
            or {"block_args": blocks(), "stem_size": 8, "msfa_output_resolution": 2},
            "vocab_offset": count,
            "vocab_size": 2,
        },
        text_config=text_config("gemma3n_text", len(words), **values),
        audio_config={
            "hidden_size": 16,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 1,
            "sscp_conv_channel_size": (4, 4),
            "vocab_offset": count + 2,
            "vocab_size": 2,
        },
        vision_soft_tokens_per_image=4,
        image_token_id=ids["image_token"],
        boi_token_id=ids["boi_token"],
        eoi_token_id=ids["eoi_token"],
        audio_token_id=ids["audio_token"],
        boa_token_id=ids["boa_token"],
        eoa_token_id=ids["eoa_token"],
    )
    processor = hf.Gemma3nProcessor(
        feature_extractor=hf.Gemma3nAudioFeatureExtractor(),
        image_processor=hf.SiglipImageProcessorPil(size={"height": side, "width": side}),
        tokenizer=words,
        chat_template=template,
        image_seq_length=4,
    )
    with own_towers(make):
        model = randomize(hf.Gemma3nForConditionalGeneration(config), seed)
    return save(model, processor, folder)
