"""The packaged demo model, from its recipe to a bundle that verifies."""

import json
from pathlib import Path

import pytest

from vlmc.cli import main

pytestmark = pytest.mark.build
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("split", ["dual", "single"])
def test_the_demo_is_built_verified_and_asked(workshop, tmp_path, capsys, split):
    recipe, out = str(ROOT / "recipes" / "demo.yaml"), str(tmp_path)
    cache = str(workshop.cache)
    assert main(["build", recipe, "--out", out, "--cache", cache, "--set", f"split={split}"]) == 0
    capsys.readouterr()
    # Its answers are shorter than the tokens that are compared.
    assert main(["verify", str(tmp_path / "demo")]) == 0
    assert "DIFFER" not in capsys.readouterr().out
    samples = ROOT / "vlmc" / "demo" / "samples"
    picture, [asked, *_] = next(iter(json.loads((samples / "questions.json").read_text()).items()))
    words = ["--image", str(samples / picture), "--prompt", asked["question"], "--json"]
    assert main(["run", str(tmp_path / "demo"), *words]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == asked["answer"]
