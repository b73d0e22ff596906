"""Questions that share one reading of the weights, against each asked by itself."""

import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints.native import qwen2_vl
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.passes import checkpoint, reference
from vlmc.passes.abreast import UnwantedError, abreast
from vlmc.passes.checkpoint_index import read_index
from vlmc.passes.reference import Asking, Reference
from vlmc.sources import read_checkpoint


@pytest.fixture
def model(tmp_path):
    """Two layers over streamed weights that are waited for; the second one skips the first."""
    import torch
    from safetensors.torch import save_file

    from vlmc.passes.streamed import stream_weights

    made = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 4))
    made.rows = torch.nn.Parameter(torch.randn(3, 4, 4))
    state = {name: value.clone() for name, value in made.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    stream_weights(made, read_index(tmp_path), {name: name for name in state}, state.keys())
    return made


@pytest.fixture
def reads(monkeypatch):
    """Names of the tensors that are read."""
    from vlmc.passes import streamed

    found = []
    stored = checkpoint.read_stored

    def counted(ref, start, stop):
        found.append(ref.name)
        return stored(ref, start, stop)

    monkeypatch.setattr(streamed, "read_stored", counted)
    return found


def ask(model, x, *, short=False):
    import torch

    with torch.no_grad():
        x = x if short else model[0](x)
        x = model[1](x)
        return x @ model.rows[1]


def test_a_weight_is_read_once_for_all_that_want_it(model, reads):
    import torch

    inputs = [torch.randn(rows, 6) for rows in (3, 1, 5)]
    alone = [ask(model, x, short=n == 1) for n, x in enumerate(inputs)]
    reads.clear()
    found = abreast([partial(ask, model, x, short=n == 1) for n, x in enumerate(inputs)])
    assert all(map(torch.equal, found, alone))
    weights = [name for name in reads if not name.endswith("bias")]
    assert weights == ["0.weight", "1.weight", "rows"]


def test_the_first_to_fail_ends_all(model):
    import torch

    def fail():
        ask(model, torch.ones(1, 6))
        raise LookupError("one of them")

    ended = []

    def long():
        try:
            for _ in range(9):
                ask(model, torch.ones(1, 6))
        finally:
            ended.append(True)

    before = threading.active_count()
    with pytest.raises(LookupError, match="one of them"):
        abreast([long, fail, long])
    assert ended == [True, True]
    assert threading.active_count() == before


def test_an_interrupt_ends_all(model, monkeypatch):
    import torch

    from vlmc.passes import streamed

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(streamed, "serve", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        abreast([partial(ask, model, torch.ones(1, 6))] * 2)
    assert threading.active_count() == before


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    folder = qwen2_vl(tmp_path_factory.mktemp("abreast") / "model")
    images = FAMILIES["qwen2-vl"].facts(read_checkpoint(folder)).images
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return Reference(folder, read_index(folder), images, image)


def questions():
    shown = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    said = [{"type": "text", "text": "Name three colours, and a town."}]
    content = [(said, []), (shown, [(64, 40)]), (shown, [(40, 84)])]
    return [
        Asking([{"role": "user", "content": parts}], [Image.new("RGB", s, "red") for s in sizes], 5)
        for parts, sizes in content
    ]


def test_answers_are_those_of_questions_asked_one_by_one(oracle, reads, monkeypatch):
    """Five tokens: what a model remembers of one question, as positions, is not another's."""
    together = list(oracle.answers(questions()))
    matrix = "layers.0.mlp.down_proj.weight"
    assert sum(name.endswith(matrix) for name in reads) == 5
    monkeypatch.setattr(reference, "_SCORES", 1)
    reads.clear()
    alone = list(oracle.answers(questions()))
    assert sum(name.endswith(matrix) for name in reads) == 15
    for one, other in zip(together, alone, strict=True):
        assert one.token_ids == other.token_ids
        assert one.prompt_token_ids == other.prompt_token_ids
        np.testing.assert_array_equal(one.logits, other.logits)
        assert [f.shape for f in one.features] == [f.shape for f in other.features]
        assert all(map(np.array_equal, one.features, other.features))


@pytest.mark.parametrize("count", [1, 3])
def test_what_nobody_waits_for_ends_before_the_next_weight(model, reads, monkeypatch, count):
    import torch

    from vlmc.passes import streamed

    unwanted = threading.Event()
    serve = streamed.serve

    def served(weight, wanted):
        unwanted.set()
        return serve(weight, wanted)

    monkeypatch.setattr(streamed, "serve", served)
    before = threading.active_count()
    with pytest.raises(UnwantedError):
        abreast([partial(ask, model, torch.ones(1, 6))] * count, unwanted)
    assert set(reads) <= {"0.weight", "0.bias"}
    assert threading.active_count() == before


def test_towers_of_small_pictures_go_abreast(oracle, reads, monkeypatch):
    """Once for the features, once for the answer; those of large ones each by itself."""
    matrix = "visual.blocks.0.mlp.fc1.weight"
    together = list(oracle.answers(questions()))
    assert sum(name.endswith(matrix) for name in reads) == 2
    monkeypatch.setattr(reference, "_SMALL_PICTURES", 0)
    reads.clear()
    alone = list(oracle.answers(questions()))
    assert sum(name.endswith(matrix) for name in reads) == 4
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
        assert all(map(np.array_equal, one.features, other.features))


def test_an_error_says_which_question_it_was(oracle):
    """Calibration names it by its number."""
    from vlmc.passes.calibrate import _named

    kept = oracle.processor.chat_template
    oracle.processor.chat_template = (
        "{% if messages | length > 1 %}{{ raise_exception('too long') }}{% endif %}a"
    )
    message = {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
    asked = [Asking([message] * number, [], 1, within=partial(_named, number)) for number in (1, 2)]
    try:
        with pytest.raises(VlmcError, match="refuses question 2: too long") as caught:
            list(oracle.answers(asked))
    finally:
        oracle.processor.chat_template = kept
    assert caught.value.at == "quantize.calibration"
