"""Sampling against transformers' logits processors, and every bound of its values."""

import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.runtime.rules import Rules
from vlmc.runtime.sampling import (
    Sampler,
    Sampling,
    check_number,
    processed,
    softmax,
    suggested_sampling,
)

CHOICES = [
    {"temperature": 0.7},
    {"temperature": 1.9, "top_k": 5},
    {"top_k": 1},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 1.0},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.0},
    {"temperature": 0.4, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 3.0, "top_p": 0.5, "min_p": 0.3},
    {"repetition_penalty": 1.3, "temperature": 0.9},
    {"repetition_penalty": 0.8, "temperature": 1.0, "top_k": 7, "top_p": 0.95},
]


def rules(sampling, seen):
    return Rules(prompt=sorted(seen), penalty=sampling.repetition_penalty)


def sampler_of(sampling, seen):
    return Sampler(sampling, rules(sampling, seen))


def transformers_scores(logits, sampling, seen):
    import torch
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    assert GenerationConfig  # the classes below are those generate() builds from it, in its order
    steps = LogitsProcessorList()
    if sampling.repetition_penalty is not None:
        steps.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.temperature is not None:
        steps.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k is not None:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1:  # generate() leaves 1.0 out
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        steps.append(MinPLogitsWarper(sampling.min_p))
    scores = steps(torch.tensor([sorted(seen)]), torch.tensor(logits)[None])
    return scores[0].numpy()


@pytest.mark.parametrize("values", CHOICES)
def test_scores_are_transformers(values):
    sampling = Sampling(**values)
    random = np.random.default_rng(0)
    for size in (2, 50, 2000):
        for spread in (0.1, 3, 30):
            logits = random.normal(0, spread, size).astype(np.float32)
            seen = set(random.integers(0, size, 20).tolist())
            expected = transformers_scores(logits, sampling, seen)
            found = processed(logits, sampling, rules(sampling, seen))
            np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_order_is_that_of_generate():
    """One of everything through transformers' own builder of the list."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    asked = {"temperature": 0.6, "top_k": 60, "top_p": 0.7, "min_p": 0.04}
    asked |= {"repetition_penalty": 1.4}
    generation = GenerationConfig(do_sample=True, num_beams=1, **asked)
    steps = LlamaForCausalLM(config)._get_logits_processor(
        generation_config=generation, input_ids_seq_length=3, device="cpu"
    )
    logits = np.random.default_rng(1).normal(0, 4, 300).astype(np.float32)
    expected = steps(torch.tensor([[1, 2, 3]]), torch.tensor(logits)[None])[0].numpy()
    found = processed(logits, Sampling(**asked), rules(Sampling(**asked), [1, 2, 3]))
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_greedy_is_the_default_and_zero_temperature():
    logits = np.array([1.0, 5.0, 3.0, 5.0], np.float32)
    assert Sampling().greedy
    assert Sampling(seed=3, repetition_penalty=1.1).greedy
    assert Sampling(temperature=0, top_k=2).greedy
    for sampling in (Sampling(), Sampling(temperature=0, top_p=0.1), Sampling(temperature=0.0)):
        assert Sampler(sampling).choose(logits) == 1  # the first of equals
    for name in ("temperature", "top_p", "min_p"):
        assert not Sampling(**{name: 0.5}).greedy
    assert not Sampling(top_k=3).greedy


def test_a_greedy_choice_minds_the_penalty_and_the_choices_before():
    sampler = sampler_of(Sampling(repetition_penalty=2.0), {1})
    logits = np.array([3.0, 5.0, -1.0], np.float32)
    assert [sampler.choose(logits) for _ in range(3)] == [0, 1, 1]
    np.testing.assert_array_equal(sampler.rules.apply(logits.copy()), [1.5, 2.5, -1.0])
    negative = sampler_of(Sampling(repetition_penalty=3.0), {0})
    assert negative.choose(np.array([-1.0, -2.0], np.float32)) == 1


def test_samples_follow_the_probabilities_and_the_seed():
    logits = np.array([0.0, 1.0, 2.0, -np.inf], np.float32)
    sampler = Sampler(Sampling(temperature=1.0, seed=5))
    drawn = np.bincount([sampler.choose(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(drawn, softmax(logits), atol=0.02)
    assert drawn[3] == 0

    def run(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.choose(logits) for _ in range(40)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(None) != run(None)


def test_half_precision_logits_are_taken_and_left_as_they_are():
    logits = np.array([1.0, 2.0, 3.0], np.float16)
    kept = logits.copy()
    sampler_of(Sampling(temperature=0.5, top_k=2, repetition_penalty=1.2), {1}).choose(logits)
    np.testing.assert_array_equal(logits, kept)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(value):
    with pytest.raises(VlmcError, match="not numbers"):
        Sampler(Sampling()).choose(np.array([1.0, value], np.float32))


NAN, INF = float("nan"), float("inf")
BAD = {
    "temperature": [-0.1, NAN, INF, -INF, True, "1", 1e309, 101, 1e-9, 5e-324],
    "top_k": [0, -1, 1.5, True, 2**31, NAN, "3"],
    "top_p": [0, -0.5, 1.001, NAN, INF, False, "x"],
    "min_p": [-0.01, 1.01, NAN, INF, True],
    "repetition_penalty": [0, -1, NAN, INF, True, 1000],
    "seed": [-1, 2**63, 1.0, True, NAN],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in BAD.items() for v in vs])
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(VlmcError) as caught:
        Sampling(**{name: value})
    assert caught.value.at == name


def test_bounds_themselves_are_fine():
    Sampling(0, 1, 1, 0, 100, 0)
    Sampling(0.001, 2**31 - 1, 1e-30, 1, 1e-30, 2**63 - 1)
    Sampling(100)


def test_a_number_says_what_it_should_be():
    with pytest.raises(VlmcError, match=r"2\.5 is not a whole number from 1 to 9"):
        check_number("x", 2.5, kind=int, low=1, high=9)
    with pytest.raises(VlmcError, match="0 is not a number above 0 and at most 1"):
        check_number("x", 0, kind=float, low=0, high=1, above=True)


def test_extreme_logits_never_break_a_sample():
    for values in CHOICES:
        for logits in ([3e38, -3e38, 0], [-np.inf, 0, -np.inf], [0, 0, 0], [1e-40, -1e-40, 0]):
            sampler = Sampler(Sampling(**values, seed=0))
            assert sampler.choose(np.array(logits, np.float32)) in (0, 1, 2)


def test_what_the_authors_suggest():
    values = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}
    assert suggested_sampling(values) == Sampling(0.7, 20, 0.8)
    assert suggested_sampling({"top_k": 0}) == Sampling(temperature=1.0)
    assert not suggested_sampling({}).greedy
    with pytest.raises(VlmcError) as caught:
        suggested_sampling({"top_p": 7})
    assert caught.value.at == "manifest.json: generation.suggested: top_p"
