"""Fuyu: what is read of a checkpoint, and prompts whose picture stands ahead of all text."""

import json
from pathlib import Path

import pytest

from tests.checkpoints.towerless import FUYU_WORDS, fuyu, unigram
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.prompts import read_prompt
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.plan import resolve
from vlmc.recipe import Recipe
from vlmc.runtime.images import prepare
from vlmc.runtime.prompt import PROMPT_FILE, PromptBuilder
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["fuyu"]
IMAGES: Json = {"image_processor_type": "FuyuImageProcessorFast"}
TEXTS = (
    "What is in this picture?",
    "",
    " lead and  two\n",
    "<box>1, 2, 3, 4</box> and <point>5, 6</point>",
    "caffè — 图",
)


def facts(images: Json = IMAGES, **changes: object) -> ModelFacts:
    return FAMILY.facts(Checkpoint(changes, {}, IMAGES | images, {}, {}))


def builder(folder: Path, bundle: Path) -> PromptBuilder:
    """The prompts of a checkpoint, as a bundle has them."""
    found = FAMILY.facts(read_checkpoint(folder))
    id, vocab = found.image_token_id, found.text.vocab
    spec, files = read_prompt(folder, None, id, vocab, plain_image="", ahead=FAMILY.ahead)
    (bundle / "processor").mkdir(parents=True)
    for name, data in files.items():
        (bundle / "processor" / name).write_bytes(data)
    (bundle / PROMPT_FILE).write_text(spec.model_dump_json())
    return PromptBuilder.load(bundle)


def asked(*parts: Json) -> list[Json]:
    return [{"role": "user", "content": list(parts)}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fuyu(tmp_path_factory.mktemp("fuyu"))


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import FuyuConfig

    whole, found = FuyuConfig(), facts()
    assert found.image_token_id == whole.image_token_id
    text = whole.get_text_config()
    assert (found.text.hidden, found.text.layers) == (text.hidden_size, text.num_hidden_layers)
    assert (found.text.vocab, found.text.heads) == (text.vocab_size, text.num_attention_heads)
    assert found.text.max_positions == text.max_position_embeddings
    # 1080 x 1920 in patches of 30, a mark after each row and one after all.
    assert found.image_tokens(5000, 10) == 36 * (1 + 1) + 1
    assert found.image_tokens(2160, 3840) == 36 * (64 + 1) + 1
    assert found.weights is not None
    assert found.weights.language == 36 * 4096 * (4 * 4096 + 2 * 16384)
    assert found.weights.head == found.weights.embedding == 262144 * 4096


def test_keys_of_the_decoder_at_the_top_are_its_own(folder: Path) -> None:
    nested = read_checkpoint(folder).config
    flat = {key: value for key, value in nested.items() if key != "text_config"}
    text = {key: value for key, value in nested["text_config"].items() if key != "model_type"}
    size = {"patch_size": {"height": 8, "width": 8}}
    assert facts(size, **flat | text).text == facts(size, **nested).text


@pytest.mark.parametrize(
    ("images", "changes", "expected"),
    [
        ({}, {"num_channels": 1}, "pictures of 1 channels"),
        ({}, {"patch_size": 14}, "the model takes 588"),
        ({}, {"num_attention_heads": 60}, "does not divide into 60 heads"),
        ({"image_processor_type": "CLIPImageProcessor"}, {}, "FuyuImageProcessor"),
    ],
)
def test_variants_that_are_refused(images: Json, changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(images, **changes)


def test_a_recipe_cannot_ask_for_more_than_one_image(folder: Path) -> None:
    read = read_checkpoint(folder)
    recipe = Recipe.model_validate(
        {"model": "./m", "name": "m", "ctx-len": 256, "images": {"max-per-prompt": 2}}
    )
    with pytest.raises(VlmcError, match="this model takes 1") as caught:
        resolve(recipe, read)
    assert "images.max-per-prompt" in str(caught.value)
    assert resolve(Recipe(model="./m", name="m"), read).limits.max_images == 1


@pytest.mark.parametrize("template", [None, "{{ bos_token }}{{ messages[0].content[-1].text }}:"])
def test_prompts_are_those_of_the_processor(
    folder: Path, template: str | None, tmp_path: Path
) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    from vlmc.passes.stand_in import cut_tensors

    if template is not None:
        folder = fuyu(tmp_path / "model", template=template)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    cut_tensors(processor.image_processor)
    processor.chat_template = processor.tokenizer.chat_template  # its own is lost on loading
    ours = builder(folder, tmp_path / "bundle")
    images = FAMILY.facts(read_checkpoint(folder)).images
    picture = Image.new("RGB", (41, 17))
    for text in TEXTS:
        words: Json = {"type": "text", "text": text}
        written = text
        if template is not None:
            written = processor.apply_chat_template(asked(words))
        bare = {"add_special_tokens": False} if template is not None else {}
        wanted = processor(text=[written], **bare)["input_ids"][0]
        assert ours.build(asked(words), []).token_ids.tolist() == wanted
        wanted = processor(text=[written], images=[picture])["input_ids"][0].tolist()
        found = ours.build(asked({"type": "image"}, words), [prepare(picture, images)])
        assert found.token_ids.tolist() == wanted
        rows = [at for at, id in enumerate(wanted) if id == processor.image_token_id]
        assert found.feature_index[rows].tolist() == list(range(3 * 6))
        assert (found.feature_index >= 0).sum() == 3 * 6


def test_text_that_spells_the_words_of_a_picture_stays_text(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    ours = builder(folder, tmp_path)
    image = prepare(Image.new("RGB", (8, 8)), FAMILY.facts(read_checkpoint(folder)).images)
    words: Json = {"type": "text", "text": "|SPEAKER| <s>|newline|<0x04>|SPEAKER|"}
    ids = ours.build(asked(words), []).token_ids.tolist()
    known = json.loads((tmp_path / "processor/tokenizer.json").read_text())["model"]["vocab"]
    special = {at for at, (piece, _) in enumerate(known) if piece in (*FUYU_WORDS, "<s>")}
    assert not special & set(ids[1:])
    found = ours.build(asked({"type": "image"}, words), [image]).token_ids.tolist()
    assert [id for id in found if id in special] == [3, 4, 1, 5]
    with pytest.raises(VlmcError, match="one image in a prompt"):
        ours.build(asked({"type": "image"}, {"type": "image"}, words), [image, image])


def test_tokenizers_that_the_processor_cannot_use(folder: Path, tmp_path: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    spaces = {**data["pre_tokenizer"], "prepend_scheme": "never"}
    without = tmp_path / "without"
    without.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (without / name).write_bytes((folder / name).read_bytes())

    def read(image: int = 3, **changes: object) -> None:
        (without / "tokenizer.json").write_text(json.dumps({**data, **changes}))
        read_prompt(without, None, image, 1000, plain_image="", ahead=FAMILY.ahead)

    read()
    with pytest.raises(VlmcError, match="3 image tokens of 4 times"):
        read(pre_tokenizer=spaces)
    with pytest.raises(VlmcError, match="is 3 in the tokenizer, 4 in the model"):
        read(4)
    words = unigram(["<unk>", "<s>", "</s>"], ["|SPEAKER|"]).backend_tokenizer
    with pytest.raises(VlmcError, match=r"no '\|NEWLINE\|'"):
        read(**json.loads(words.to_str()))
