"""Golden cases: written, read back and run; every kind of difference is a finding."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.tiny_bundle import tiny_bundle
from vlmc.bundle.goldens import (
    CASES,
    Case,
    Cases,
    FeatureSample,
    certain_tokens,
    digest_of,
    read_cases,
    run_case,
    top_logits,
    write_goldens,
)
from vlmc.bundle.publish import seal
from vlmc.bundle.store import read_bundle, verify_digests
from vlmc.errors import VlmcError
from vlmc.runtime import load

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]


WHAT = ["prompt", "pixels 0", "features 0", "logits", "tokens"]


def png() -> bytes:
    stream = io.BytesIO()
    levels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    Image.fromarray(levels).save(stream, "PNG")
    return stream.getvalue()


def golden(folder, draft, **changes):
    """Lays one case in a staged bundle, computed by that bundle itself."""
    seal(folder, draft)
    model = load(folder, threads=1)
    picture = png()
    prompt = model.prompt(MESSAGES, images=[picture])
    features = model.image_features(prompt.images[0])[[0, 3]]
    answer = model.generate(MESSAGES, images=[picture], max_new_tokens=6)
    rows = model.logits(prompt, answer.token_ids)
    values = {
        "name": "picture",
        "computed_by": "this bundle at build",
        "messages": MESSAGES,
        "images": ("goldens/picture.png",),
        "prompt_token_ids": tuple(prompt.token_ids.tolist()),
        "pixels": tuple(
            {name: digest_of(value) for name, value in image.tensors.items()}
            for image in prompt.images
        ),
        "features": (FeatureSample(rows=(0, 3), file="goldens/picture.npy", tolerance=1e-4),),
        "logits": top_logits(rows[0], 1e-2, count=5),
        "token_ids": answer.token_ids,
        "certain": certain_tokens(rows[: len(answer.token_ids)], 1e-3),
        "max_new_tokens": 6,
    }
    case = Case(**{**values, **changes})
    text = Case(
        name="text",
        computed_by="transformers fp32",
        messages=[{"role": "user", "content": "x"}],
        prompt_token_ids=tuple(model.prompt(prompt="x").token_ids.tolist()),
    )
    write_goldens(
        folder,
        [case, text],
        pictures={"goldens/picture.png": picture},
        arrays={"goldens/picture.npy": features},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("golden"), goldens=golden)


def run(folder, case=None):
    bundle = read_bundle(folder)
    model = load(folder, threads=1)
    return [run_case(model, bundle, c) for c in ([case] if case else read_cases(bundle))]


def test_a_bundle_agrees_with_its_own_goldens(folder):
    verify_digests(read_bundle(folder))
    picture, text = run(folder)
    assert picture.ok
    assert [f.what for f in picture.findings] == [
        "prompt",
        "pixels 0",
        "features 0",
        "logits",
        "tokens",
    ]
    assert text.ok
    assert [f.what for f in text.findings] == ["prompt"]
    assert text.computed_by == "transformers fp32"


def case_of(folder):
    return read_cases(read_bundle(folder))[0]


def changed(case, what):
    raised = tuple(value + 1 for value in case.logits.values)
    return case.model_copy(
        update={
            "prompt": {"prompt_token_ids": (*case.prompt_token_ids[:-1], 3)},
            "pixels 0": {
                "pixels": ({"pixel_values": digest_of(np.zeros((1, 3, 8, 8), np.float32))},)
            },
            "features 0": {"features": (case.features[0].model_copy(update={"rows": (1, 2)}),)},
            "logits": {"logits": case.logits.model_copy(update={"values": raised})},
            "tokens": {"token_ids": (case.token_ids[0], 255, *case.token_ids[2:]), "certain": 3},
        }[what]
    )


@pytest.mark.parametrize("what", WHAT)
def test_a_difference_is_found_where_it_is(folder, what):
    (result,) = run(folder, changed(case_of(folder), what))
    assert not result.ok
    assert [f.what for f in result.findings if not f.ok] == [what]


def test_what_is_not_a_number_never_agrees(folder):
    case = case_of(folder)
    values = (float("nan"), *case.logits.values[1:])
    nan = case.model_copy(update={"logits": case.logits.model_copy(update={"values": values})})
    (result,) = run(folder, nan)
    assert [f.what for f in result.findings if not f.ok] == ["logits"]


def test_only_certain_tokens_must_agree(folder):
    case = case_of(folder)
    wrong = case.model_copy(update={"token_ids": (*case.token_ids[:2], 255), "certain": 2})
    (result,) = run(folder, wrong)
    assert result.ok


def test_top_logits_are_sorted_and_ties_take_the_smaller_id():
    top = top_logits(np.array([1.0, 7.0, 7.0, -2.0], np.float32), 0.5, count=3)
    assert top.token_ids == (1, 2, 0)
    assert top.values == (7.0, 7.0, 1.0)


def test_tokens_are_certain_up_to_the_first_near_tie():
    rows = np.array([[5, 0, 1], [3, 2.5, 0], [9, 0, 0]], np.float32)
    assert certain_tokens(rows, 0.1) == 3
    assert certain_tokens(rows, 0.25) == 1
    assert certain_tokens(rows, 3) == 0
    assert certain_tokens(rows[:0], 1) == 0


def test_a_bundle_may_have_none(tmp_path):
    assert read_cases(read_bundle(tiny_bundle(tmp_path))) == ()


def test_files_that_are_not_listed_are_refused(tmp_path):
    def goldens(folder, draft):
        golden(folder, draft, images=("../picture.png",))

    with pytest.raises(VlmcError, match=r"lists no file '\.\./picture\.png'"):
        read_cases(read_bundle(tiny_bundle(tmp_path, goldens=goldens)))


def test_expectations_of_what_is_not_there_are_refused(tmp_path, folder):
    def goldens(folder, draft):
        golden(folder, draft, images=())

    with pytest.raises(VlmcError, match="more images than it has"):
        read_cases(read_bundle(tiny_bundle(tmp_path, goldens=goldens)))
    case = case_of(folder)
    far = case.features[0].model_copy(update={"rows": (0, 4)})
    with pytest.raises(VlmcError, match=r"rows \[0, 4\] of 4"):
        run(folder, case.model_copy(update={"features": (far,)}))


def test_a_pickle_is_not_loaded(tmp_path):
    def goldens(folder, draft):
        golden(folder, draft)
        np.save(folder / "goldens/picture.npy", np.array([{}], dtype=object), allow_pickle=True)

    folder = tiny_bundle(tmp_path, goldens=goldens)
    with pytest.raises(VlmcError, match=r"goldens/picture\.npy"):
        run(folder)


def test_broken_cases_are_named(tmp_path):
    def goldens(folder, draft):
        golden(folder, draft)
        values = json.loads((folder / CASES).read_bytes())
        values["cases"][0]["certain"] = "all"
        (folder / CASES).write_text(json.dumps(values))

    with pytest.raises(VlmcError, match=r"cases\.0\.certain"):
        read_cases(read_bundle(tiny_bundle(tmp_path, goldens=goldens)))


def test_the_file_is_canonical(folder):
    text = (folder / CASES).read_text()
    listed = Cases.model_validate_json(text).model_dump(mode="json")
    assert text == json.dumps(listed, sort_keys=True, ensure_ascii=False, indent=1) + "\n"
