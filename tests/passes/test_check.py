"""The check of a finished bundle that has two kinds of programs, on a bundle made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backends.kernels import KERNELS
from tests.tiny_bundle import tiny_bundle
from vlmc.errors import VlmcError
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


@pytest.mark.parametrize(("factor", "exact"), [(1.1, True), (1.5, False)])
def test_programs_that_disagree_fail_the_build(tmp_path: Path, factor: float, exact: bool) -> None:
    bundle = tiny_bundle(tmp_path, kernels=factor)
    if KERNELS is None:  # nobody can tell here
        assert checked(tmp_path / "out", bundle, exact=exact)
        return
    with pytest.raises(VlmcError, match=r"kernels differ by .* on question 'text', allowed") as one:
        checked(tmp_path / "out", bundle, exact=exact)
    assert "VLMC_KERNELS=off" in str(one.value)
    assert not list((tmp_path / "out").rglob("*.json"))


def test_goldens_are_those_of_the_portable_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path, kernels=1.0003)
    files = checked(tmp_path / "with", bundle)
    assert "goldens/cases.json" in files
    monkeypatch.setenv("VLMC_KERNELS", "off")
    assert checked(tmp_path / "without", bundle) == files
