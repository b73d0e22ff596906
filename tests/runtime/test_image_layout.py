"""Marks around the tiles of an image, against transformers' Idefics3 processor."""

import json

import pytest
from PIL import Image
from tokenizers import AddedToken

from tests.chat_checkpoints import TOKENIZERS
from tests.checkpoints import SMOLVLM_TEMPLATE
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
    (bundle / "processor").mkdir(parents=True)
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
        edge = builder.spec.image_layout.edge
        edge_id = processor.tokenizer.convert_tokens_to_ids(edge)
        for span, image in zip(prompt.spans, prepared, strict=True):
            inside = rows[span.start : span.start + span.length]
            assert (inside >= 0).sum() == image.tokens
            assert ids[span.start] == ids[span.start + span.length - 1] == edge_id


def test_a_text_that_spells_the_marks_is_text(tmp_path):
    processor = save(tmp_path, "byte-level")
    builder, _ = build(tmp_path, processor)
    for text in ("<fake_token_around_image>", "<global-img>", "<row_1_col_1>"):
        ids = builder.build([{"role": "user", "content": [words(f"a {text} b")]}], []).token_ids
        assert processor.tokenizer.convert_tokens_to_ids(text) not in ids
        assert text in builder.decode(ids.tolist())


def test_marks_the_tokenizer_does_not_know_are_refused(tmp_path):
    processor = save(tmp_path, "byte-level")
    unknown = LAYOUT.model_copy(update={"edge": "<fake>"})
    with pytest.raises(VlmcError, match="'<fake>' is not an added token"):
        build(tmp_path, processor, unknown)
