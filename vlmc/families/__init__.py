"""The model families: one row each."""

from vlmc.families import (
    aria,
    aya_vision,
    blip_2,
    chameleon,
    cohere2_vision,
    cohere_compass,
    cosmos3_edge,
    deepseek_vl,
    deepseek_vl_hybrid,
    ernie4_5_vl_moe,
    exaone4_5,
    fast_vlm,
    fuyu,
    gemma3,
    gemma3n,
    gemma4,
    gemma4_unified,
    glm4v,
    glm4v_moe,
    glm_ocr,
    got_ocr2,
    granite4_vision,
    granite_docling,
    hunyuan_vl,
    hyperclovax_vision_v2,
    idefics2,
    idefics3,
    instructblip,
    internvl,
    janus,
    kimi_k25,
    kosmos2,
    lfm2_vl,
    lfm3_vl,
    lighton_ocr,
    llama4,
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    minicpmv4_6,
    minicpmv4_7,
    mistral3,
    molmo2,
    ovis2,
    paddleocr_vl,
    paligemma,
    perception_lm,
    phi4_multimodal,
    pixtral,
    pp_chart2table,
    qianfan_ocr,
    qwen2_5_omni_thinker,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_5_moe,
    qwen3_omni_moe_thinker,
    qwen3_vl,
    qwen3_vl_moe,
    video_llama_3,
    video_llava,
    vipllava,
)
from vlmc.families.configs import section
from vlmc.families.spec import Family
from vlmc.schema import Json, lookup

_ROWS = (
    llava.FAMILY,
    vipllava.FAMILY,
    llava_next.FAMILY,
    llava_next_video.FAMILY,
    video_llava.FAMILY,
    llava_onevision.FAMILY,
    fast_vlm.FAMILY,
    granite4_vision.FAMILY,
    pixtral.FAMILY,
    mistral3.FAMILY,
    lighton_ocr.FAMILY,
    internvl.FAMILY,
    qianfan_ocr.FAMILY,
    qwen2_vl.FAMILY,
    qwen2_5_vl.FAMILY,
    qwen2_5_omni_thinker.FAMILY,
    exaone4_5.FAMILY,
    hyperclovax_vision_v2.FAMILY,
    qwen3_vl.FAMILY,
    qwen3_vl_moe.FAMILY,
    qwen3_omni_moe_thinker.FAMILY,
    cohere_compass.FAMILY,
    cosmos3_edge.FAMILY,
    qwen3_5.FAMILY,
    qwen3_5_moe.FAMILY,
    glm4v.FAMILY,
    glm4v_moe.FAMILY,
    glm_ocr.FAMILY,
    ernie4_5_vl_moe.FAMILY,
    hunyuan_vl.FAMILY,
    paddleocr_vl.FAMILY,
    video_llama_3.FAMILY,
    kimi_k25.FAMILY,
    idefics2.FAMILY,
    idefics3.FAMILY,
    aria.FAMILY,
    granite_docling.FAMILY,
    ovis2.FAMILY,
    lfm2_vl.FAMILY,
    lfm3_vl.FAMILY,
    minicpmv4_6.FAMILY,
    minicpmv4_7.FAMILY,
    gemma3.FAMILY,
    gemma3n.FAMILY,
    gemma4.FAMILY,
    gemma4_unified.FAMILY,
    paligemma.FAMILY,
    phi4_multimodal.FAMILY,
    llama4.FAMILY,
    perception_lm.FAMILY,
    molmo2.FAMILY,
    aya_vision.FAMILY,
    cohere2_vision.FAMILY,
    deepseek_vl.FAMILY,
    deepseek_vl_hybrid.FAMILY,
    got_ocr2.FAMILY,
    pp_chart2table.FAMILY,
    janus.FAMILY,
    blip_2.FAMILY,
    instructblip.FAMILY,
    fuyu.FAMILY,
    kosmos2.FAMILY,
    chameleon.FAMILY,
)
FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}


def by_model_type(model_type: str, *, at: str | None = None) -> Family:
    """The family that serves a checkpoint.

    Args:
        model_type: ``model_type`` of its ``config.json``.
        at: Its place, for errors.

    Raises:
        VlmcError: No family does; the known ones are listed.
    """
    rows = [family for family in FAMILIES.values() if family.tower is None]
    types = {name: family for family in rows for name in family.model_types}
    return lookup(types, model_type, kind="model type", at=at)


def by_config(config: Json, *, at: str | None = None) -> Family:
    """As ``by_model_type``, for a ``config.json`` whose tower may have a family of its own.

    Args:
        config: The file's content.
        at: Its place, for errors.

    Raises:
        VlmcError: No family serves it.
    """
    found = str(config.get("model_type"))
    tower = section(config, "vision_config", at=at or "config.json").get("model_type")
    rows = (row for row in FAMILIES.values() if row.tower is not None and row.tower == tower)
    own = next((row for row in rows if found in row.model_types), None)
    return own or by_model_type(found, at=at)
