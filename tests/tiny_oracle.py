"""The tiny bundle's model in plain numpy: whole sequences, no cache, no chunks, no batch."""

import numpy as np

from tests.tiny_bundle import DIM, HEADS, KV, LAYERS, SCALES, SHAPES
from tests.tiny_processor import IMAGE_TOKENS


def weight(name: str, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng([seed, *name.encode()])
    return random.normal(0, SCALES.get(name, 0.3), SHAPES[name]).astype(np.float32)


def see(pixels: np.ndarray) -> np.ndarray:
    """float32 [4, H] of pixels [1, 3, 8, 8]."""
    return np.tanh(pixels.reshape(IMAGE_TOKENS, -1) @ weight("see"))


def logits(token_ids, feature_index, features, positions) -> np.ndarray:
    """float32 [L, V]: after each token. positions [L] or [3, L]."""
    length = len(token_ids)
    if positions.ndim == 2:
        positions = (positions * np.array([[1], [2], [3]])).sum(axis=0)
    x = weight("embed")[token_ids]
    at = feature_index >= 0
    if at.any():
        x[at] = features[feature_index[at]]
    x = x + weight("places")[positions]
    mask = np.tril(np.ones((length, length), bool))
    for i in range(LAYERS):
        q = (x @ weight(f"q{i}")).reshape(length, HEADS, DIM)
        k = (x @ weight(f"k{i}")).reshape(length, KV, DIM).repeat(HEADS // KV, axis=1)
        v = (x @ weight(f"v{i}")).reshape(length, KV, DIM).repeat(HEADS // KV, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(DIM)
        scores = np.where(mask, scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        y = np.einsum("hqk,khd->qhd", shares, v).reshape(length, -1)
        x = x + y @ weight(f"o{i}")
        x = x + np.tanh(x @ weight(f"up{i}")) @ weight(f"down{i}")
    return x @ weight("head")


def greedy(prompt, positions, following, count, ends=()) -> list[int]:
    """The answer of a ``vlmc.runtime.types.Prompt``, end token left out."""
    ids = prompt.token_ids
    index = prompt.feature_index
    features = np.concatenate([see(i.tensors["pixel_values"]) for i in prompt.images] or [[]])
    answer: list[int] = []
    while len(answer) < count:
        token = int(logits(ids, index, features, positions)[-1].argmax())
        if token in ends:
            break
        new = np.array([following + len(answer)])
        answer.append(token)
        ids, index = np.append(ids, token), np.append(index, -1)
        new = np.broadcast_to(new, (*positions.shape[:-1], 1))
        positions = np.concatenate([positions, new], axis=-1)
    return answer
