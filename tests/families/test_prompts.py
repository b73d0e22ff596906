import builtins
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from tests.chat_checkpoints import (
    CHATML,
    LLAVA,
    TOKENIZERS,
    VICUNA,
    byte_level,
    legacy_llama,
    llava_tokenizer,
    metaspace_llama,
    save_llava,
    save_qwen2_vl,
    special,
    unigram,
)
from vlmc.errors import VlmcError
from vlmc.families.prompts import read_prompt

TEXTS = (
    "What is in the picture?",
    "<image>\nTwo  spaces, café </s> <s>x <pad>",
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hi<|im_end|>\n<extra> <new>",
    "",
    " lead",
)


def read(folder: Path, image: str | None = "<image>", id: int | None = None):
    if id is None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        id = tokenizer.token_to_id(image)
    return read_prompt(folder, image, id, 1000, plain_image="<image>\n")


def change(folder: Path, name: str = "tokenizer_config.json", **values: object) -> None:
    path = folder / name
    state = json.loads(path.read_text()) if path.is_file() else {}
    removed = [key for key, value in values.items() if value == "REMOVE"]
    state = {**state, **values}
    path.write_text(json.dumps({k: v for k, v in state.items() if k not in removed}))


def assert_as_transformers(folder: Path, image: str | None = "<image>", id: int | None = None):
    """The same ids, texts and template variables as ``AutoTokenizer``'s."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    if id is None:
        id = theirs.convert_tokens_to_ids(image)
    spec, files = read(folder, image, id)
    ours = Tokenizer.from_buffer(files["tokenizer.json"])
    assert ours.truncation is None
    assert ours.padding is None
    for text in TEXTS:
        for flag in (True, False):
            ids = theirs(text, add_special_tokens=flag)["input_ids"]
            assert ours.encode(text, add_special_tokens=flag).ids == ids, (text, flag)
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == (
                theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            )
    assert spec.special_tokens == theirs.special_tokens_map
    assert spec.clean_up_tokenization_spaces == theirs.clean_up_tokenization_spaces
    backend = theirs.backend_tokenizer
    assert ours.get_vocab() == backend.get_vocab()
    assert {id: repr(t) for id, t in ours.get_added_tokens_decoder().items()} == (
        {id: repr(t) for id, t in backend.get_added_tokens_decoder().items()}
    )
    return spec, files


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_saved_llava_folders(tmp_path, kind):
    save_llava(tmp_path, llava_tokenizer(kind), LLAVA)
    spec, files = assert_as_transformers(tmp_path)
    assert files["chat_template.jinja"].decode() == LLAVA
    assert spec.chat_template == "processor/chat_template.jinja"
    assert spec.plain_image == "<image>\n"
    assert spec.image_token == "<image>"


def test_saved_qwen2_vl_folders(tmp_path):
    save_qwen2_vl(tmp_path)
    spec, files = assert_as_transformers(tmp_path, "<|image_pad|>")
    assert files["chat_template.jinja"].decode() == CHATML
    assert spec.special_tokens["eos_token"] == "<|im_end|>"


def test_the_same_bytes_each_time(tmp_path):
    first = read(save_llava(tmp_path / "a", llava_tokenizer("byte-level"), LLAVA))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert read(tmp_path / "b") == first


def old_style(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    """A LLaVA folder as older versions wrote them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    decoder = {
        str(id): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for id, token in tokenizer.get_added_tokens_decoder().items()
    }
    start = {
        "__type": "AddedToken",
        "content": "<s>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }
    state = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "bos_token": start,
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "LlamaTokenizer",
        "model_max_length": 64,
        **config,
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    change(folder, **state)
    return folder


@pytest.mark.parametrize("make", [legacy_llama, metaspace_llama, byte_level])
@pytest.mark.parametrize("model_type", ["llava", "llava_next", "qwen2_vl"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"legacy": True},
        {"add_prefix_space": False},
        {"add_eos_token": True},
        {"bos_token": None},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"tokenizer_class": "LlamaTokenizerFast", "clean_up_tokenization_spaces": True},
        {"tokenizer_class": "Qwen2TokenizerFast"},
        {"tokenizer_class": "Qwen2Tokenizer", "unk_token": None, "pad_token": "REMOVE"},
        {"tokenizer_class": "REMOVE"},
    ],
    ids=lambda config: " ".join(config) or "default",
)
def test_what_classes_make_of_a_folder(tmp_path, make, model_type, config):
    if make is byte_level and model_type == "qwen2_vl":
        config = {**config, "legacy": "REMOVE"}
    tokenizer = make()
    for text in ("<unk>", "<s>", "</s>", "<image>", "<pad>"):
        tokenizer.add_tokens([special(text)])
    old_style(tmp_path, tokenizer, **config)
    change(tmp_path, "config.json", model_type=model_type)
    assert_as_transformers(tmp_path)


def test_tokens_that_only_the_configuration_has(tmp_path):
    tokenizer = llava_tokenizer("legacy-llama")
    old_style(tmp_path, tokenizer)
    size = tokenizer.get_vocab_size()
    state = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    for id, text in ((size, "<extra>"), (size + 1, "<new>")):
        state[str(id)] = {**state["0"], "content": text, "special": id == size, "rstrip": True}
    change(tmp_path, added_tokens_decoder=state, additional_special_tokens=["<new>", "<more>"])
    spec, _ = assert_as_transformers(tmp_path, "<extra>")
    assert spec.image_token_id == size


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "normalized", "special"])
@pytest.mark.parametrize("kind", ["byte-level", "legacy-llama"])
def test_flags_that_differ_between_the_files(tmp_path, kind, flag):
    tokenizer = llava_tokenizer(kind)
    old_style(tmp_path, tokenizer)
    state = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    for text in ("<pad>", "</s>", "<tool_call>"):
        token = state[str(tokenizer.token_to_id(text))]
        token[flag] = not token[flag]
    change(tmp_path, added_tokens_decoder=state)
    assert_as_transformers(tmp_path)


def test_only_a_sentencepiece_model(tmp_path):
    old_style(tmp_path, llava_tokenizer("byte-level"))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"not one")
    with pytest.raises(
        VlmcError, match=r"transformers cannot read this tokenizer(.|\n)*save_pretr"
    ):
        read(tmp_path, "<image>", 3)


def test_named_tokens_of_the_model(tmp_path):
    old_style(
        tmp_path,
        llava_tokenizer("byte-level"),
        image_token="<image>",
        extra_special_tokens={"boi_token": "<new>"},
    )
    spec, _ = assert_as_transformers(tmp_path)
    assert spec.special_tokens["image_token"] == "<image>"
    assert spec.special_tokens["boi_token"] == "<new>"


def test_folders_from_before_added_tokens_decoder(tmp_path):
    tokenizer = llava_tokenizer("byte-level")
    size = tokenizer.get_vocab_size()
    old_style(tmp_path, tokenizer, added_tokens_decoder="REMOVE", eos_token="REMOVE")
    end = {"content": "</s>", "lstrip": False, "normalized": True, "rstrip": True}
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps(
            {
                "bos_token": "<s>",
                "eos_token": {**end, "single_word": False},
                "additional_special_tokens": ["<new>"],
                "cls_token": "<cls>",
            }
        )
    )
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<extra>": size, "<new>": size + 1}))
    assert_as_transformers(tmp_path)


def test_special_tokens_map_alone_does_not_count_beside_added_tokens_decoder(tmp_path):
    old_style(tmp_path, llava_tokenizer("byte-level"))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<other>"}))
    spec, _ = assert_as_transformers(tmp_path)
    assert spec.special_tokens["eos_token"] == "</s>"


def test_truncation_and_padding_are_switched_off(tmp_path):
    tokenizer = llava_tokenizer("byte-level")
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64, pad_token="<new>")
    old_style(tmp_path, tokenizer, pad_token="REMOVE")
    spec, files = read(tmp_path)
    assert spec.special_tokens["pad_token"] == "<new>"
    ours = Tokenizer.from_buffer(files["tokenizer.json"])
    assert ours.truncation is None
    assert ours.padding is None


@pytest.mark.parametrize("name", ["vocabulary", "other class", "other family"])
def test_transformers_converts_what_is_not_read_here(tmp_path, name, monkeypatch):
    if name == "vocabulary":
        save_qwen2_vl(tmp_path)
        state = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
        (tmp_path / "vocab.json").write_text(json.dumps(state["vocab"]))
        merges = "\n".join(" ".join(pair) for pair in state["merges"])
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        (tmp_path / "tokenizer.json").unlink()
        image = "<|image_pad|>"
    else:
        old_style(tmp_path, llava_tokenizer("byte-level"), tokenizer_class="GPT2Tokenizer")
        model_type = "paligemma" if name == "other family" else "qwen2_vl"
        change(tmp_path, "config.json", model_type=model_type)
        image = "<image>"
    spec, _ = assert_as_transformers(tmp_path, image)
    real = builtins.__import__

    def missing(module, *args, **kwargs):
        if module.split(".")[0] == "transformers":
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(VlmcError, match=r"needs 'transformers'.*\n.*vlmc\[build\]"):
        read(tmp_path, image, spec.image_token_id)


def test_ordinary_folders_need_no_transformers(tmp_path, monkeypatch):
    save_llava(tmp_path / "a", llava_tokenizer("byte-level"), LLAVA)
    save_qwen2_vl(tmp_path / "b")
    real = builtins.__import__

    def missing(module, *args, **kwargs):
        if module.split(".")[0] in ("transformers", "torch"):
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    read(tmp_path / "a")
    read(tmp_path / "b", "<|image_pad|>")


def test_the_image_token_is_found_by_its_id(tmp_path):
    save_llava(tmp_path, llava_tokenizer("byte-level"), LLAVA)
    id = llava_tokenizer("byte-level").token_to_id("<image>")
    assert read(tmp_path, None, id)[0].image_token == "<image>"


def test_mistakes_name_the_folder(tmp_path):
    folder = save_llava(tmp_path / "model", llava_tokenizer("byte-level"), LLAVA)
    id = llava_tokenizer("byte-level").token_to_id("<image>")
    with pytest.raises(
        VlmcError, match=r"model: .*'<img>', is not in the tokenizer\n.*tokenizer.json"
    ):
        read(folder, "<img>", 5)
    with pytest.raises(VlmcError, match=f"model: .*'<image>', is {id} in the tokenizer, 5 in the"):
        read(folder, "<image>", 5)
    with pytest.raises(VlmcError, match="the token 5, is not in the tokenizer"):
        read(folder, None, 5)
    word = llava_tokenizer("byte-level").token_to_id("a")
    with pytest.raises(VlmcError, match="is a word, not an added token"):
        read(folder, "a", word)
    change(folder, split_special_tokens=True)
    with pytest.raises(VlmcError, match="split_special_tokens"):
        read(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(VlmcError, match=r"model/tokenizer_config\.json: the file cannot be read"):
        read(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(VlmcError, match="an object is needed"):
        read(folder)
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"0": 3}}')
    with pytest.raises(VlmcError, match="a token is its text"):
        read(folder)
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "x", "lstrip": 1}}')
    with pytest.raises(VlmcError, match="does not describe a token"):
        read(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(VlmcError, match=r"model/tokenizer\.json: this is not a tokenizer"):
        read(folder, "<image>", id)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(VlmcError, match="model: no tokenizer in the model folder\n  allowed: tok"):
        read(folder, "<image>", id)


def test_a_class_that_does_not_fit_its_file(tmp_path):
    tokenizer = unigram()
    tokenizer.add_tokens([special("<image>"), AddedToken("<pad>", special=True)])
    old_style(tmp_path, tokenizer)
    change(tmp_path, "config.json", model_type="qwen2_vl")
    with pytest.raises(VlmcError, match=r"tokenizer\.json: this tokenizer class is a BPE"):
        read(tmp_path)


# transformers leaves the files of additional templates open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestTemplates:
    @pytest.fixture
    def folder(self, tmp_path):
        return save_llava(tmp_path, llava_tokenizer("byte-level"), None)

    def both(self, folder: Path) -> str | None:
        """Ours; the processor's template where it has one must be the same."""
        from transformers import AutoProcessor

        template = AutoProcessor.from_pretrained(folder).chat_template
        if isinstance(template, dict):
            template = template["default"]
        _, files = read(folder)
        ours = files.get("chat_template.jinja")
        if template is not None:
            assert ours is not None
            assert ours.decode() == template
        return None if ours is None else ours.decode()

    def test_none(self, folder):
        assert self.both(folder) is None
        assert read(folder)[0].chat_template is None

    def test_precedence(self, folder):
        change(folder, chat_template="config")
        assert self.both(folder) == "config"
        others = folder / "additional_chat_templates"
        others.mkdir()
        (others / "default.jinja").write_text("folder")
        (others / "tool_use.jinja").write_text("tools")
        assert self.both(folder) == "folder"
        (folder / "chat_template.jinja").write_text("single\r\nlines")
        assert self.both(folder) == "single\nlines"
        shutil.rmtree(others)
        assert self.both(folder) == "single\nlines"
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
        assert self.both(folder) == "json"
        change(folder, "processor_config.json", chat_template="processor")
        assert self.both(folder) == "processor"

    def test_named_templates(self, folder):
        named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
        change(folder, chat_template=named)
        assert self.both(folder) == "d"
        change(folder, chat_template=named[:1])
        with pytest.raises(
            VlmcError, match=r"several chat templates \(rag\), none named 'default'"
        ):
            read(folder)
        change(folder, "processor_config.json", chat_template={"default": VICUNA, "x": "y"})
        assert self.both(folder) == VICUNA

    def test_contradictions(self, folder):
        others = folder / "additional_chat_templates"
        others.mkdir()
        (others / "rag.jinja").write_text("r")
        with pytest.raises(VlmcError, match="none named 'default'"):
            read(folder)
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
        with pytest.raises(VlmcError, match="which one holds"):
            read(folder)
        change(folder, "processor_config.json", chat_template=3)
        with pytest.raises(VlmcError, match="a chat template is text"):
            read(folder)
