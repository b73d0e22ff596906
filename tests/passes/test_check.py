"""The check of a finished bundle that has two kinds of programs, on a bundle made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.backends.kernels import KERNELS
from tests.tiny_bundle import tiny_bundle
from vlmc.errors import VlmcError
from vlmc.passes.answers import Expected
from vlmc.passes.ask import ask
from vlmc.passes.check import Gates, check
from vlmc.passes.questions import Question, picture

ASKED = (Question("text", "what?"), Question("picture", "and this?", ((12, 9),)))
NO_GATES = Gates(None, None, None)


def checked(folder: Path, bundle: Path, *, exact: bool = True) -> dict[str, bytes]:
    """What the pass writes."""
    folder.mkdir()
    check(bundle, ASKED, {}, NO_GATES, tokens=4, exact=exact, out=folder)
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("split", ["dual", "single"])
def test_both_kinds_are_asked_where_this_machine_can(tmp_path: Path, split: str) -> None:
    bundle = tiny_bundle(tmp_path, split=split, kernels=1.5)
    pictures = {q.name: [picture(size) for size in q.sizes] for q in ASKED}
    portable, fast = ask(bundle, ASKED, pictures, {}, 4)
    assert portable.keys() == {"text", "picture"}
    assert fast.keys() == (portable.keys() if KERNELS else set())
    for name, found in fast.items():
        rows = portable[name]["logits"]
        # The same tokens are given to both.
        assert found["logits"] == pytest.approx(rows * 1.5, rel=1e-5)
        assert found["prompt_token_ids"].tolist() == portable[name]["prompt_token_ids"].tolist()


def test_a_bundle_with_one_kind_is_asked_once(tmp_path: Path) -> None:
    _, fast = ask(tiny_bundle(tmp_path), ASKED[:1], {"text": []}, {}, 2)
    assert fast == {}


@pytest.mark.parametrize(("factor", "exact"), [(1.1, True), (3.0, False)])
def test_programs_that_disagree_fail_the_build(tmp_path: Path, factor: float, exact: bool) -> None:
    bundle = tiny_bundle(tmp_path, kernels=factor)
    if KERNELS is None:  # nobody can tell here
        assert checked(tmp_path / "out", bundle, exact=exact)
        return
    with pytest.raises(VlmcError, match=r"kernels differ by .* on question 'text', allowed") as one:
        checked(tmp_path / "out", bundle, exact=exact)
    assert "VLMC_KERNELS=off" in str(one.value)
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize("own", [1.0, 3.0])
def test_programs_may_be_as_far_apart_as_quantizing_moves_them(tmp_path: Path, own: float) -> None:
    """And then the goldens allow as much, so that ``vlmc verify`` agrees with the build."""
    bundle = tiny_bundle(tmp_path, kernels=1.2)
    portable, _ = ask(bundle, ASKED[:1], {"text": []}, {}, 4)
    rows = portable["text"]["logits"]
    prompt = portable["text"]["prompt_token_ids"].tolist()
    expected = {"text": Expected(prompt, [], rows.argmax(-1).tolist(), rows * own)}
    out = tmp_path / "out"
    out.mkdir()

    def run() -> None:
        check(bundle, ASKED[:1], expected, NO_GATES, tokens=4, exact=False, out=out)

    if own == 1 and KERNELS is not None:
        with pytest.raises(VlmcError, match="kernels differ by"):
            run()
        return
    run()
    [case] = json.loads((out / "goldens" / "cases.json").read_text())["cases"]
    span = float(rows.max() - rows.min())
    share = float(abs(rows * own - rows).max()) / (span * own)
    assert case["logits"]["tolerance"] == pytest.approx(max(0.05, share) * span, rel=0.1)


def test_goldens_are_those_of_the_portable_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path, kernels=1.0003)
    files = checked(tmp_path / "with", bundle)
    assert "goldens/cases.json" in files
    monkeypatch.setenv("VLMC_KERNELS", "off")
    assert checked(tmp_path / "without", bundle) == files
