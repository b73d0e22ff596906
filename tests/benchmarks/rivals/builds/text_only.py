"""The decoder of a checkpoint as a checkpoint of its own, for engines that know no pictures."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

PREFIXES = ("model.language_model.", "language_model.model.", "model.text_model.")


def main(checkpoint: Path, out: Path, architecture: str, model_type: str) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, "pt") as stored:
            for name in sorted(stored.keys()):
                prefix = next((one for one in PREFIXES if name.startswith(one)), None)
                if prefix is not None:
                    tensors["model." + name.removeprefix(prefix)] = stored.get_tensor(name)
                elif name.endswith("lm_head.weight"):
                    tensors["lm_head.weight"] = stored.get_tensor(name)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    text = config["text_config"]
    text |= {"architectures": [architecture], "model_type": model_type, "dtype": "bfloat16"}
    text["tie_word_embeddings"] = "lm_head.weight" not in tensors
    rope = text.pop("rope_parameters", None) or {}
    text["rope_theta"] = rope.get("rope_theta", text.get("rope_theta", 10000.0))
    (out / "config.json").write_text(json.dumps(text, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(checkpoint / name, out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])
