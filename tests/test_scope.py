"""What a pass is asked to do, worked out from the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlmc.scope import stored_ties
from vlmc.sources import check_weights

TABLE = np.arange(24, dtype=np.float32).reshape(6, 4)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("config", "head", "ties"),
    [
        ({}, TABLE, [(HEAD, EMBEDDING)]),
        ({}, TABLE + 1, []),
        ({}, None, []),
        ({"text_config": {"tie_word_embeddings": False}}, TABLE + 1, []),
        ({"text_config": {}, "tie_word_embeddings": True}, TABLE, [(HEAD, EMBEDDING)]),
        ({"tie_word_embeddings": False}, TABLE, None),
        ({"tie_word_embeddings": False, "text_config": {}}, TABLE, [(HEAD, EMBEDDING)]),
    ],
)
def test_a_stored_head_is_tied_where_its_values_are(
    config: dict[str, Any], head: Any, ties: Any, tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    tensors = {EMBEDDING: TABLE, "model.norm.weight": np.ones(4, np.float32)}
    if head is not None:
        tensors[HEAD] = head
    save_file(tensors, tmp_path / "model.safetensors")
    assert stored_ties(config, check_weights(tmp_path)) == ties
