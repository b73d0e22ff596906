"""A small Aria: large pictures in few patches, queries, experts beside shared ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import (
    LLAVA_SPECIALS,
    LLAVA_TEMPLATE,
    randomize,
    save,
    text_config,
    tokenizer,
)

PATCH = 140


def aria(
    folder: Path,
    *,
    seed: int = 1,
    tower: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
    queries: int = 5,
    **values: Any,
) -> Path:
    """An Aria of five tokens a picture, whose 980 pixels a side are seven patches.

    ``values`` are the decoder's.
    """
    import transformers as hf

    words = tokenizer(LLAVA_SPECIALS, bos="<s>", eos="</s>", template=None)
    words._set_model_specific_special_tokens({"image_token": "<image>"})
    config = hf.AriaConfig(
        vision_config={
            "model_type": "idefics3_vision",
            "image_size": 6 * PATCH,
            "patch_size": PATCH,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            **(tower or {}),
        },
        text_config=text_config(
            "aria_text",
            len(words),
            **{
                "intermediate_size": 24,
                "moe_num_experts": 5,
                "moe_topk": 2,
                "moe_num_shared_experts": 3,
                **values,
            },
        ),
        projector_patch_to_query_dict={16: 7, 49: queries},
        vision_feature_layer=-2,
        image_token_index=LLAVA_SPECIALS.index("<image>"),
    )
    processor = hf.AriaProcessor(
        image_processor=hf.AriaImageProcessorPil(**{"min_image_size": 300, **(images or {})}),
        tokenizer=words,
        size_conversion={490: 7, 980: queries},
        chat_template=LLAVA_TEMPLATE,
    )
    model = randomize(hf.AriaForConditionalGeneration(config), seed)
    return save(model, processor, folder)
