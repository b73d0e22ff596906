"""Programs the engine cannot feed or read are refused when the bundle is opened."""

import pytest

from tests.tiny_bundle import tiny_bundle
from vlmc.bundle.store import Bundle, read_bundle
from vlmc.errors import VlmcError
from vlmc.runtime.engine import Engine


def changed(bundle: Bundle, **changes) -> Bundle:
    programs = dict(bundle.manifest.programs)
    programs["language"] = programs["language"].model_copy(update=changes)
    manifest = bundle.manifest.model_copy(update={"programs": programs})
    return Bundle(bundle.folder, manifest)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return read_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


def without(specs, name):
    return tuple(spec for spec in specs if spec.name != name)


def renamed(specs, name, other):
    return tuple(
        spec.model_copy(update={"name": other}) if spec.name == name else spec for spec in specs
    )


def reshaped(specs, name, shape):
    return tuple(
        spec.model_copy(update={"shape": shape}) if spec.name == name else spec for spec in specs
    )


def test_inputs_missing_unknown_or_odd_are_named(bundle):
    inputs = bundle.manifest.programs["language"].inputs
    for specs, word in (
        (without(inputs, "feature_index"), "feature_index"),
        (renamed(inputs, "feature_index", "attention_bias"), "attention_bias"),
        (reshaped(inputs, "image_features", ("rows", "hidden")), "image_features"),
        (reshaped(inputs, "image_features", ("rows",)), "image_features"),
    ):
        with pytest.raises(VlmcError, match=f"not those this vlmc feeds: .*{word}"):
            Engine(changed(bundle, inputs=specs), threads=1)


def test_outputs_missing_or_unknown_are_named(bundle):
    outputs = bundle.manifest.programs["language"].outputs
    for specs in (without(outputs, "logits"), renamed(outputs, "present_key.0", "more")):
        with pytest.raises(VlmcError, match="not those this vlmc reads"):
            Engine(changed(bundle, outputs=specs), threads=1)


def test_a_cache_of_another_length_is_refused(tmp_path, bundle):
    limits = bundle.manifest.limits.model_copy(update={"ctx_len": 95})
    manifest = bundle.manifest.model_copy(update={"limits": limits})
    with pytest.raises(VlmcError, match="not a cache of ctx-len"):
        Engine(Bundle(bundle.folder, manifest), threads=1)


def test_an_unknown_backend_lists_the_known_ones(bundle):
    manifest = bundle.manifest.model_copy(update={"backend": "onnxrumtime"})
    with pytest.raises(VlmcError, match="did you mean 'onnxruntime'"):
        Engine(Bundle(bundle.folder, manifest), threads=1)


def test_a_cache_too_large_for_the_machine_says_what_to_change(bundle, monkeypatch):
    limits = bundle.manifest.limits.model_copy(update={"batch_size": 2**44})
    manifest = bundle.manifest.model_copy(update={"limits": limits})
    with pytest.raises(VlmcError, match="does not fit this machine's memory"):
        Engine(Bundle(bundle.folder, manifest), threads=1)
