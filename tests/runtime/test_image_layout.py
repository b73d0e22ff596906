"""Marks around the tiles of an image, against transformers' Idefics3 processor."""

import json

import pytest
from PIL import Image
from tokenizers import AddedToken

from tests.chat_checkpoints import TOKENIZERS
from tests.checkpoints.parts import SMOLVLM_TEMPLATE
from vlmc.bundle.manifest import ImageLayout
from vlmc.errors import VlmcError
from vlmc.families.idefics3 import LAYOUT
from vlmc.families.prompts import read_prompt
from vlmc.families.split_processors import split_spec
from vlmc.runtime.images import prepare
from vlmc.runtime.prompt import PromptBuilder

IMAGE = {"type": "image"}
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
# One mark that is no special token; those of the second row are no tokens at all.
ADDED = (
    "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<row_1_col_1>",
    "<row_1_col_2>",
)  # fmt: skip
PICTURES = [Image.new("RGB", size) for size in ((90, 20), (50, 50), (10, 70))]


def words(text):
    return {"type": "text", "text": text}


CONTENTS = {
    "no image": [words("x")],
    "before": [IMAGE, words("What is it?")],
    "between": [words(" a "), IMAGE, words(" \n b"), IMAGE, IMAGE],
    "last": [words("a\n\n"), IMAGE],
}


def save(folder, kind, *, split=True):
    """An Idefics3 checkpoint's text side; its processor."""
    from transformers import Idefics3ImageProcessorPil, Idefics3Processor, PreTrainedTokenizerFast

    tokenizer = TOKENIZERS[kind]()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for text in (*NAMED.values(), *ADDED):
        if text not in known:
            special = text != "<global-img>"
            tokenizer.add_tokens([AddedToken(text, normalized=False, special=special)])
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=split
    )
    made = Idefics3Processor(
        image_processor=images,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMED),
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    )
    made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "idefics3"}))
    return Idefics3Processor.from_pretrained(folder, backend="pil")


def build(folder, processor, layout=LAYOUT):
    """Our builder of that folder, and its image geometry."""
    spec, files = read_prompt(
        folder, None, processor.image_token_id, 5000, plain_image="<image>", image_layout=layout
    )
    bundle = folder / "bundle"
    (bundle / "processor").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (bundle / "processor" / name).write_bytes(data)
    (bundle / "processor/prompt.json").write_text(spec.model_dump_json())
    saved = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    return PromptBuilder.load(bundle), split_spec(saved, 4, image_size=28)


def expected(processor, content, pictures):
    waiting = iter(pictures)
    filled = [{**part, "image": next(waiting)} if part == IMAGE else part for part in content]
    chat = [{"role": "user", "content": filled}]
    return list(processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)[0])


@pytest.mark.parametrize(("kind", "split"), [*((k, True) for k in TOKENIZERS), ("unigram", False)])
def test_ids_equal_the_processors(tmp_path, kind, split):
    processor = save(tmp_path, kind, split=split)
    builder, images = build(tmp_path, processor)
    for name, content in CONTENTS.items():
        pictures = PICTURES[: content.count(IMAGE)]
        prepared = [prepare(picture, images) for picture in pictures]
        prompt = builder.build([{"role": "user", "content": content}], prepared)
        ids = prompt.token_ids
        assert ids.tolist() == expected(processor, content, pictures), name
        rows = prompt.feature_index
        assert rows[ids == processor.image_token_id].tolist() == list(
            range(sum(image.tokens for image in prepared))
        )
        assert (rows[ids != processor.image_token_id] == -1).all()
        for span, image in zip(prompt.spans, prepared, strict=True):
            inside = rows[span.start : span.start + span.length]
            assert (inside >= 0).sum() == image.tokens
            assert inside[0] >= 0 <= inside[-1]


def test_a_text_that_spells_the_marks_is_text(tmp_path):
    processor = save(tmp_path, "byte-level")
    builder, _ = build(tmp_path, processor)
    for text in ("<fake_token_around_image>", "<global-img>", "<row_1_col_1>"):
        ids = builder.build([{"role": "user", "content": [words(f"a {text} b")]}], []).token_ids
        assert processor.tokenizer.convert_tokens_to_ids(text) not in ids
        assert text in builder.decode(ids.tolist())


def test_marks_may_be_named_as_the_tokenizer_names_them(tmp_path):
    processor = save(tmp_path, "byte-level")
    named = ImageLayout(start="a{bos_token}{row}", end="{eos_token}")
    builder, _ = build(tmp_path, processor, named)
    assert builder.spec.image_layout == ImageLayout(start="a<s>{row}", end="</s>")
    with pytest.raises(VlmcError, match="the tokenizer has no 'boi_token'"):
        build(tmp_path, processor, ImageLayout(start="{boi_token}"))


def test_a_placeholder_that_is_no_token_is_text_where_a_user_writes_it(tmp_path):
    processor = save(tmp_path, "byte-level")
    layout = ImageLayout(placeholder="[pic]", start="<s>", whole="1:", end="</s>")
    template = SMOLVLM_TEMPLATE.replace("<image>", "[pic]")
    (tmp_path / "chat_template.jinja").write_text(template)
    builder, images = build(tmp_path, processor, layout)
    picture = prepare(Image.new("RGB", (20, 20)), images).__class__({}, 4, (1, 1, 4))

    def ids(*content):
        return builder.build(
            [{"role": "user", "content": list(content)}], [picture]
        ).token_ids.tolist()

    def decoded(*content):
        return builder.decode(ids(*content), skip_special_tokens=False)

    shown = "<s>1:<image><image><image><image></s>"
    assert f"User: a {shown}b [pic]<end" in decoded(words("a "), IMAGE, words("b [pic]"))
    assert f"User:{shown}b [pi<end" in decoded(IMAGE, words("b [pi"))
    # Nor does half of it, with what comes next.
    assert f"User: [pi{shown}c]<end" in decoded(words("[pi"), IMAGE, words("c]"))
    with pytest.raises(VlmcError, match="1 places for images, for 0 images"):
        builder.build([{"role": "user", "content": [IMAGE]}], [])
