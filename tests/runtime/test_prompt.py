import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from tests.chat_checkpoints import (
    CHATML,
    LLAVA,
    MISTRAL,
    TOKENIZERS,
    VICUNA,
    llava_tokenizer,
    load_qwen2_vl,
    save_llava,
    save_qwen2_vl,
)
from vlmc.bundle.manifest import PromptSpec
from vlmc.errors import VlmcError
from vlmc.families.prompts import read_prompt
from vlmc.runtime.messages import simple_message
from vlmc.runtime.prompt import PromptBuilder
from vlmc.runtime.template import ChatTemplate
from vlmc.runtime.tokenizer import TextTokenizer
from vlmc.runtime.types import PreparedImage

TEMPLATES = {"llava": LLAVA, "vicuna": VICUNA, "mistral": MISTRAL}
IMAGE = {"type": "image"}
SIZES = ((60, 90), (60, 30), (28, 56))  # height, width of the pictures, in order


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


CHATS: dict[str, list[dict[str, Any]]] = {
    "text only": [{"role": "user", "content": [text("What is it?")]}],
    "empty": [{"role": "user", "content": [IMAGE, text("")]}],
    "image first": [{"role": "user", "content": [IMAGE, text("What is in the picture?")]}],
    "image last": [{"role": "user", "content": [text("What is in this picture? "), IMAGE]}],
    "between": [{"role": "user", "content": [text("First:"), IMAGE, text("then"), IMAGE, IMAGE]}],
    "spaces": [{"role": "user", "content": [IMAGE, text("  \n two  spaces \n\n")]}],
    "languages": [{"role": "user", "content": [IMAGE, text("café 你好 🙂 ▁▁ e\u0301 \u00a0x")]}],
    "nearly": [
        {"role": "user", "content": [text("a < b, <im, image>, </ s>, <|im <<SYS>>"), IMAGE]}
    ],
    "turns": [
        {"role": "system", "content": [text("You are a helpful assistant.")]},
        {"role": "user", "content": [IMAGE, text("What is it?")]},
        {"role": "assistant", "content": [text("A red ball.")]},
        {"role": "user", "content": [text("And this: "), IMAGE, text("?")]},
    ],
    "strings": [
        {"role": "user", "content": "Hello there!"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [IMAGE, text("What is it?")]},
    ],
}


@dataclass
class Pair:
    """Our builder, and transformers' processor of the same folder."""

    ours: PromptBuilder
    theirs: Any
    kind: str

    def images(
        self, messages: list[dict[str, Any]]
    ) -> tuple[list[Image.Image], list[PreparedImage]]:
        count = sum(p == IMAGE for m in messages for p in m["content"] if not isinstance(p, str))
        pictures, prepared = [], []
        for height, width in SIZES[:count]:
            pictures.append(Image.new("RGB", (width, height), (90, 120, 30)))
            grid = (1, 2, 2)
            if self.kind == "qwen2-vl":
                result = self.theirs.image_processor(pictures[-1], return_tensors="np")
                _, rows, columns = result["image_grid_thw"][0].tolist()
                grid = (1, rows // 2, columns // 2)
            prepared.append(PreparedImage({}, grid[1] * grid[2], grid))
        return pictures, prepared

    def expected(self, messages: list[dict[str, Any]], pictures: list[Image.Image]) -> list[int]:
        waiting = iter(pictures)
        filled = [
            {
                **message,
                "content": message["content"]
                if isinstance(message["content"], str)
                else [
                    {**part, "image": next(waiting)} if part == IMAGE else part
                    for part in message["content"]
                ],
            }
            for message in messages
        ]
        ids = self.theirs.apply_chat_template(filled, tokenize=True, add_generation_prompt=True)
        return list(ids[0])


def make(folder: Path, vocab_size: int = 1000, **names: Any) -> PromptBuilder:
    config = json.loads((folder / "config.json").read_text())
    image = "<|image_pad|>" if config["model_type"] == "qwen2_vl" else "<image>"
    id = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(image)
    spec, files = read_prompt(folder, image, id, vocab_size, plain_image="<image>\n")
    bundle = folder / "bundle"
    (bundle / "processor").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (bundle / "processor" / name).write_bytes(data)
    (bundle / "processor" / "prompt.json").write_text(spec.model_dump_json())
    return PromptBuilder.load(bundle)


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    from transformers import AutoProcessor

    cache: dict[tuple[str, str], Pair] = {}

    def get(kind: str, template: str = "llava") -> Pair:
        if (kind, template) not in cache:
            folder = tmp_path_factory.mktemp("checkpoint")
            if kind == "qwen2-vl":
                theirs = load_qwen2_vl(save_qwen2_vl(folder))
            else:
                save_llava(folder, llava_tokenizer(kind), TEMPLATES[template])
                theirs = AutoProcessor.from_pretrained(folder)
            cache[kind, template] = Pair(make(folder), theirs, kind)
        return cache[kind, template]

    return get


def cases():
    yield from ((kind, template) for kind in TOKENIZERS for template in TEMPLATES)
    yield "qwen2-vl", "chatml"


@pytest.mark.parametrize(("kind", "template"), list(cases()))
def test_ids_equal_the_processors(pair, kind, template):
    both = pair(kind, template)
    for name, messages in CHATS.items():
        if template == "llava" and name == "strings":
            continue  # refused: see test_a_dropped_string_is_refused
        pictures, prepared = both.images(messages)
        prompt = both.ours.build(messages, prepared)
        assert prompt.token_ids.tolist() == both.expected(messages, pictures), name
        image_id = both.ours.spec.image_token_id
        rows = prompt.feature_index[prompt.token_ids == image_id]
        assert rows.tolist() == list(range(sum(image.tokens for image in prepared)))
        assert (prompt.feature_index[prompt.token_ids != image_id] == -1).all()
        assert [span.length for span in prompt.spans] == [image.tokens for image in prepared]
        first = 0
        for span in prompt.spans:
            part = prompt.feature_index[span.start : span.start + span.length]
            assert part.tolist() == list(range(first, first + span.length))
            first += span.length


# Bits that come close to special tokens, and ordinary ones.
NEAR = st.sampled_from(
    [
        "<",
        ">",
        "<|",
        "|>",
        "im",
        "image",
        "/",
        "s",
        "</",
        "unk",
        "pad",
        "_",
        "▁",
        "\n",
        " ",
        "  ",
        "The",
        "ball",
        "é",
        "你",
        "🙂",
        "'s",
        "12",
        ".",
        "\t",
        "\x00",
        "\ufdd0",
        "USER:",
        "[INST]",
    ]
)
KINDS = [*TOKENIZERS, "qwen2-vl"]


def spells(both: Pair, words: str) -> bool:
    added = both.theirs.tokenizer.get_added_vocab()
    return any(token in words for token in added)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(before=st.lists(NEAR, max_size=6), after=st.lists(NEAR, max_size=6))
def test_ids_equal_the_processors_for_any_plain_text(pair, kind, before, after):
    both = pair(kind, "vicuna")
    first, second = "".join(before), "".join(after)
    if spells(both, first + second) or spells(both, first) or spells(both, second):
        return
    content = [text(first), IMAGE, text(second)]
    messages = [{"role": "user", "content": content}]
    pictures, prepared = both.images(messages)
    prompt = both.ours.build(messages, prepared)
    assert prompt.token_ids.tolist() == both.expected(messages, pictures)


def twin(tokenizer: str, template: str, spec: PromptSpec) -> PromptBuilder:
    """The same model with other names for its special tokens, so that no text spells them."""
    state = json.loads(tokenizer)
    names = {t["content"]: f"⟦{t['id']}⟧" for t in state["added_tokens"] if t["special"]}

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {rename(key): rename(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rename(item) for item in value]
        return names.get(value, value) if isinstance(value, str) else value

    if "merges" in state["model"]:
        merges = state["model"].pop("merges")
        state["model"]["merges"] = [m for m in merges if "".join(m) not in names]
    state = rename(state)
    for old, new in names.items():
        template = template.replace(old, new)
    renamed = spec.model_copy(
        update={
            "image_token": names[spec.image_token],
            "special_tokens": rename(spec.special_tokens),
        }
    )
    return PromptBuilder(renamed, TextTokenizer(json.dumps(state).encode()), ChatTemplate(template))


@pytest.fixture(scope="session")
def twins(pair):
    cache: dict[str, PromptBuilder] = {}

    def get(kind: str) -> PromptBuilder:
        if kind not in cache:
            both = pair(kind, "vicuna")
            state = both.theirs.tokenizer.backend_tokenizer.to_str()
            template = CHATML if kind == "qwen2-vl" else VICUNA
            cache[kind] = twin(state, template, both.ours.spec)
        return cache[kind]

    return get


# With "normalized-llama" even the template's "</s>" is text, unless a space stands before it: its
# spelling matters there, so a twin with another one is no reference.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "normalized-llama"])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_spelled_special_token_is_plain_text(pair, twins, kind, data):
    """Ids are those of a model whose special tokens have names that nobody can spell."""
    both = pair(kind, "vicuna")
    specials = sorted(both.theirs.tokenizer.all_special_tokens)
    bits = st.lists(st.one_of(NEAR, st.sampled_from(specials)), max_size=6)
    words = st.builds("".join, bits).filter(lambda words: "\ufdd0" not in words)
    first, second, third = (data.draw(words) for _ in range(3))
    messages = [
        {"role": "user", "content": [text(first), IMAGE, text(second)]},
        {"role": "assistant", "content": [text(third)]},
        {"role": "user", "content": [text(second), text(third), IMAGE]},
    ]
    _, prepared = both.images(messages)
    ours = both.ours.build(messages, prepared)
    theirs = twins(kind).build(messages, prepared)
    assert ours.token_ids.tolist() == theirs.token_ids.tolist()
    assert ours.spans == theirs.spans


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "word-level"])
def test_the_text_comes_back_and_no_image_is_taken(pair, kind):
    both = pair(kind, "vicuna")
    for spelled in sorted(both.theirs.tokenizer.all_special_tokens):
        words = f"a {spelled} b{spelled}c{spelled}{spelled}"
        messages = simple_message(words, 1)
        _, prepared = both.images(messages)
        prompt = both.ours.build(messages, prepared)
        clean = both.ours.build(simple_message("words", 1), prepared)
        special = set(both.theirs.tokenizer.all_special_ids)
        written = [id for id in prompt.token_ids.tolist() if id in special]
        assert written == [id for id in clean.token_ids.tolist() if id in special]
        assert prompt.spans == clean.spans
        answer = both.ours.decode(prompt.token_ids.tolist(), skip_special_tokens=False)
        assert words in answer


def test_added_words_stay_words_unless_the_template_writes_them(pair):
    both = pair("byte-level", "vicuna")
    id = both.theirs.tokenizer.convert_tokens_to_ids("<tool_call>")
    messages = simple_message("a <tool_call> b </s>", 0)
    assert both.ours.build(messages, []).token_ids.tolist().count(id) == 1
    writes = VICUNA + "<tool_call>"
    ours = PromptBuilder(both.ours.spec, both.ours._tokenizer, ChatTemplate(writes))
    assert ours.build(messages, []).token_ids.tolist().count(id) == 1
    assert ours.build(messages, []).token_ids[-1] == id


def test_a_token_put_together_from_several_texts_is_plain_text(pair):
    both = pair("byte-level", "llava")
    bare = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    for template, parts in (
        (bare, ("<im", "age>")),
        (bare, ("<", "imag", "e>")),
        ("{% for m in messages %}<{{ m.content[0].text }}>{% endfor %}", ("image",)),
        ("{% for m in messages %}{{ m.content[0].text | trim }}age>{% endfor %}", (" <im \n",)),
    ):
        ours = PromptBuilder(both.ours.spec, both.ours._tokenizer, ChatTemplate(template))
        prompt = ours.build([{"role": "user", "content": [text(part) for part in parts]}], [])
        assert ours.decode(prompt.token_ids.tolist(), skip_special_tokens=False) == "<image>"
        assert len(prompt.token_ids) > 1


def test_a_normalizer_cannot_spell_a_token():
    """Lower case makes '<IMAGE>' a normalized token's spelling."""
    from tokenizers import AddedToken, normalizers

    tokenizer = llava_tokenizer("byte-level")
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens([AddedToken("<turn>", special=True, normalized=True)])
    id = tokenizer.token_to_id("<turn>")
    spec = PromptSpec(
        image_token="<image>",
        image_token_id=tokenizer.token_to_id("<image>"),
        chat_template="x",
        plain_image="<image>",
        special_tokens={},
        vocab_size=1000,
    )
    template = ChatTemplate("{% for m in messages %}<turn>{{ m.content[0].text }}{% endfor %}")
    builder = PromptBuilder(spec, TextTokenizer(tokenizer.to_str().encode()), template)
    prompt = builder.build(simple_message("a <TURN> b <turn> <Turn", 0), [])
    assert prompt.token_ids.tolist().count(id) == 1
    assert builder.decode(prompt.token_ids.tolist()[1:]) == "a <turn> b <turn> <turn"


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_flags_of_special_tokens_hold_beside_spelled_ones(flag):
    from tests.chat_checkpoints import special

    tokenizer = TOKENIZERS["byte-level"]()
    tokenizer.add_tokens([special("<image>", **{flag: True}), special("<end>", **{flag: True})])
    spec = PromptSpec(
        image_token="<image>",
        image_token_id=tokenizer.token_to_id("<image>"),
        chat_template="x",
        plain_image="<image>",
        special_tokens={},
        vocab_size=1000,
    )
    source = (
        "{% for m in messages %}{{ m.content[0].text }}<end>{{ m.content[1].text }}{% endfor %}"
    )
    data = tokenizer.to_str()
    ours = PromptBuilder(spec, TextTokenizer(data.encode()), ChatTemplate(source))
    other = twin(data, source, spec)
    for first, second in ((" a  ", "  b"), ("<end> ", " <end>"), ("<image>", "<image> "), ("", "")):
        messages = [{"role": "user", "content": [text(first), text(second)]}]
        assert ours.build(messages, []).token_ids.tolist() == (
            other.build(messages, []).token_ids.tolist()
        )


def test_reserved_characters_beside_a_spelled_token_are_refused(pair):
    ours = pair("byte-level", "vicuna").ours
    with pytest.raises(VlmcError, match="noncharacter"):
        ours.build(simple_message("<image> \ufdd0", 0), [])


def test_images_and_places_must_match(pair):
    both = pair("byte-level", "vicuna")
    one = PreparedImage({}, 4, (1, 2, 2))
    with pytest.raises(VlmcError, match="1 places for images, for 2 images"):
        both.ours.build(simple_message("x", 1), [one, one])
    drops = PromptBuilder(both.ours.spec, both.ours._tokenizer, ChatTemplate("no image"))
    with pytest.raises(VlmcError, match="0 places for images, for 1 images"):
        drops.build(simple_message("x", 1), [one])


def test_a_dropped_string_is_refused(pair):
    ours = pair("byte-level", "llava").ours
    messages = [{"role": "user", "content": "What is it?"}]
    with pytest.raises(VlmcError, match=r"messages\[0\]\.content: .*drops"):
        ours.build(messages, [])


def test_what_frames_an_image_must_be_a_token(pair):
    ours = pair("byte-level", "vicuna").ours
    spec = ours.spec.model_copy(update={"image_prefix": ("<pad>", "pad")})
    with pytest.raises(VlmcError, match="'pad' is no added token"):
        PromptBuilder(spec, ours._tokenizer, ours._template)


def test_images_are_framed(pair):
    both = pair("byte-level", "vicuna")
    frame = {"image_prefix": ("<s>", "<pad>"), "image_suffix": ("</s>",)}
    spec = both.ours.spec.model_copy(update=frame)
    framed = PromptBuilder(spec, both.ours._tokenizer, both.ours._template)
    images = [PreparedImage({}, n, (1, 1, n)) for n in (3, 1)]
    content = [IMAGE, text("a"), IMAGE]
    plain = both.ours.build([{"role": "user", "content": content}], images)
    found = framed.build([{"role": "user", "content": content}], images)
    token = both.ours._tokenizer.token_to_id
    begin, end = [token("<s>"), token("<pad>")], [token("</s>")]
    expected, rows, at = [], [], 0
    for span in plain.spans:
        stop = span.start + span.length
        inside = plain.token_ids[span.start : stop].tolist()
        expected += [*plain.token_ids[at : span.start].tolist(), *begin, *inside, *end]
        before = [-1] * (span.start - at + len(begin))
        rows += [*before, *plain.feature_index[span.start : stop].tolist(), -1]
        at = stop
    expected += plain.token_ids[at:].tolist()
    assert found.token_ids.tolist() == expected
    assert found.feature_index.tolist() == rows + [-1] * (len(expected) - len(rows))
    for span, image in zip(found.spans, images, strict=True):
        placeholders = found.token_ids[span.start : span.start + span.length]
        assert placeholders.tolist() == [spec.image_token_id] * image.tokens


def test_no_message_is_refused(pair):
    with pytest.raises(VlmcError, match="no message"):
        pair("byte-level").ours.build([], [])


def test_a_refusal_of_the_template_is_told(pair):
    ours = pair("byte-level", "mistral").ours
    turn = {"role": "user", "content": [text("x")]}
    with pytest.raises(VlmcError, match="roles must alternate"):
        ours.build([turn, turn], [])


def test_an_id_the_model_does_not_have_is_refused(tmp_path):
    save_llava(tmp_path, llava_tokenizer("byte-level"), VICUNA)
    with pytest.raises(VlmcError, match="the model has 300 tokens"):
        make(tmp_path, vocab_size=300).build(simple_message("x", 0), [])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_plain_format_is_the_tokenizers_default(tmp_path, kind):
    from transformers import AutoTokenizer

    folder = save_llava(tmp_path, llava_tokenizer(kind), None)
    ours = make(folder)
    images = [PreparedImage({}, 3, (1, 1, 3)), PreparedImage({}, 2, (1, 1, 2))]
    prompt = ours.build(simple_message("What is it?", 2), images)
    expected = AutoTokenizer.from_pretrained(folder)(
        "<image>" * 3 + "\n" + "<image>" * 2 + "\nWhat is it?"
    )
    assert prompt.token_ids.tolist() == expected["input_ids"]
    chat = [*simple_message("x", 0), *simple_message("y", 0)]
    with pytest.raises(VlmcError, match="no chat template: it takes one user message"):
        ours.build(chat, [])
    with pytest.raises(VlmcError, match="one user message"):
        ours.build([{"role": "system", "content": "x"}], [])
    spelled = ours.build(simple_message("<s><image> x", 1), images[:1])
    assert (spelled.token_ids == ours.spec.image_token_id).sum() == 3


def test_work_is_linear(pair):
    """A long prompt with many spelled tokens and images takes no quadratic time."""
    import time

    both = pair("byte-level", "vicuna")
    image = PreparedImage({}, 64, (1, 8, 8))

    def seconds(n: int) -> float:
        content = [part for _ in range(n) for part in (IMAGE, text("a <image> b </s> c"))]
        started = time.perf_counter()
        both.ours.build([{"role": "user", "content": content}], [image] * n)
        return time.perf_counter() - started

    seconds(50)
    assert min(seconds(1600) for _ in range(3)) < 16 * max(
        min(seconds(400) for _ in range(3)), 1e-3
    )


def test_a_bundle_without_its_files_is_refused(tmp_path):
    with pytest.raises(VlmcError, match=r"processor/prompt\.json"):
        PromptBuilder.load(tmp_path)
    (tmp_path / "processor").mkdir()
    (tmp_path / "processor" / "prompt.json").write_text("{}")
    with pytest.raises(VlmcError, match=r"prompt\.json: image_token"):
        PromptBuilder.load(tmp_path)


def test_feature_index_dtype(pair):
    both = pair("byte-level", "vicuna")
    prompt = both.ours.build(simple_message("x", 0), [])
    assert prompt.token_ids.dtype == prompt.feature_index.dtype == np.int64
