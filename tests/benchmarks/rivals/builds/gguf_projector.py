"""A LLaVA's CLIP tower and projector as GGUF: llama.cpp's own converter does not take them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.position_embedding.weight": "v.position_embd.weight",
    "pre_layrnorm": "v.pre_ln",
    "post_layernorm": "v.post_ln",
    "linear_1": "mm.0",
    "linear_2": "mm.2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def main(checkpoint: Path, out: Path) -> None:
    import gguf
    import numpy as np
    from safetensors import safe_open

    config = json.loads((checkpoint / "config.json").read_text())
    images = json.loads((checkpoint / "preprocessor_config.json").read_text())
    writer = gguf.GGUFWriter(out, "clip")
    _describe(writer, config, images)
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, "pt") as stored:
            for name in sorted(stored.keys()):
                if (new := renamed(name)) is None:
                    continue
                values = stored.get_tensor(name).float().numpy()
                if values.ndim == 2 and ("blk" in new or new.startswith("mm.")):
                    kind = gguf.GGMLQuantizationType.Q8_0
                    packed = gguf.quants.quantize(values, kind)
                    writer.add_tensor(new, packed, raw_dtype=kind)
                elif new == "v.patch_embd.weight":
                    writer.add_tensor(new, values.astype(np.float16))
                else:
                    writer.add_tensor(new, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def renamed(name: str) -> str | None:
    """The tensor's name in GGUF; None for the decoder's."""
    if "vision" not in name and "projector" not in name:
        return None
    stem, _, kind = name.rpartition(".")
    layer = ""
    if ".layers." in stem:
        number, _, stem = stem.partition(".layers.")[2].partition(".")
        layer = f"v.blk.{number}."
    for old, new in NAMES.items():
        if f"{stem}.{kind}".endswith(old):
            return new
        if stem.endswith(old):
            return f"{layer}{new}.{kind}"
    raise ValueError(f"no place in GGUF for {name}")


def _describe(writer: Any, config: dict[str, Any], images: dict[str, Any]) -> None:
    tower = config["vision_config"]
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_use_gelu(False)
    writer.add_vision_image_size(tower["image_size"])
    writer.add_vision_patch_size(tower["patch_size"])
    writer.add_vision_embedding_length(tower["hidden_size"])
    writer.add_vision_feed_forward_length(tower["intermediate_size"])
    writer.add_vision_block_count(tower["num_hidden_layers"])
    writer.add_vision_head_count(tower["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(tower.get("layer_norm_eps", 1e-5))
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_image_mean(images["image_mean"])
    writer.add_vision_image_std(images["image_std"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
