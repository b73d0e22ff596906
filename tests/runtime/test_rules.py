"""Rules of a checkpoint against transformers' own list of processors, token by token."""

import numpy as np
import pytest

from vlmc.bundle.manifest import LogitsSpec
from vlmc.runtime.rules import Rules
from vlmc.runtime.sampling import Sampler, Sampling

VOCAB, ENDS, ROOM = 40, (2, 5), 12
# 44 and 45 have no score: an embedding may know more tokens than the head.
PROMPT = [1, 7, 9, 45, 45, 7, 44, 9, 11, 3]
SETTINGS = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"no_repeat_ngram_size": 30},
    {"bad_words_ids": [[9], [2], [3, 8], [9, 11, 3, 12], [5, 2]]},
    {"sequence_bias": [[[9], 2.5], [[3, 8], -4.0], [[11, 3, 12], 9.0], [[8], -1.5]]},
    {"min_length": len(PROMPT) + 4},
    {"min_length": 3},
    {"min_new_tokens": 6},
    {"min_new_tokens": 2, "min_length": len(PROMPT) + 9},
    {"forced_eos_token_id": 5},
    {"forced_eos_token_id": [5, 2]},
    {"suppress_tokens": [1, 2, 3, 17]},
    {"begin_suppress_tokens": [1, 2, 3, 17]},
    {"suppress_tokens": [5], "forced_eos_token_id": [5, 2]},
    {
        "repetition_penalty": 1.8,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[10], [7, 30]],
        "sequence_bias": [[[7], 3.0]],
        "min_new_tokens": 3,
        "forced_eos_token_id": 2,
        "suppress_tokens": [20],
        "begin_suppress_tokens": [21],
    },
]


@pytest.mark.parametrize("values", SETTINGS, ids=lambda values: ",".join(values))
def test_an_answer_is_that_of_transformers_processors(values):
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from vlmc.passes.generation import read_generation

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, num_hidden_layers=1, **sizes))
    config = GenerationConfig(**values, eos_token_id=list(ENDS), max_length=len(PROMPT) + ROOM)
    model._prepare_special_tokens(config, device="cpu")
    if values.get("min_new_tokens") is not None:
        config.min_length = config.min_new_tokens + len(PROMPT)
    steps = model._get_logits_processor(
        generation_config=config, input_ids_seq_length=len(PROMPT), device="cpu"
    )
    spec = read_generation({}, {**values, "eos_token_id": list(ENDS)}).logits
    for seed in range(5):
        random = np.random.default_rng(seed)
        rules = Rules(spec, PROMPT, ends=ENDS, room=ROOM)
        assert not rules.idle
        sampler = Sampler(Sampling(), rules)
        tokens = list(PROMPT)
        for _ in range(ROOM):
            logits = random.normal(0, 3, VOCAB).astype(np.float32)
            logits[[2, 5]] += 4.0
            expected = steps(torch.tensor([tokens]), torch.tensor(logits)[None])[0].numpy()
            found = rules.apply(logits.copy())
            np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            tokens.append(sampler.choose(logits))
            assert tokens[-1] == int(expected.argmax())


def test_without_rules_logits_are_read_once():
    assert Rules().idle
    assert Rules(LogitsSpec(repetition_penalty=1.4), penalty=1).idle
    assert not Rules(LogitsSpec(), penalty=1.4).idle
    assert not Rules(LogitsSpec(min_new_tokens=3)).idle


def test_where_everything_is_ruled_out_sampling_answers_all_the_same():
    rules = Rules(LogitsSpec(suppress_tokens=(0, 1, 2)))
    asked = Sampling(temperature=1.0, top_p=0.5, min_p=0.1, seed=1)
    assert Sampler(asked, rules).choose(np.array([1.0, 2.0, 3.0], np.float32)) == 0


def test_past_the_end_token_no_length_is_asked_for():
    rules = Rules(LogitsSpec(min_new_tokens=3), PROMPT, ends=())
    scores = np.arange(VOCAB, dtype=np.float32)
    np.testing.assert_array_equal(rules.apply(scores.copy()), scores)
