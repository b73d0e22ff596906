"""KOSMOS-2: what is refused, and a picture's tokens, which count up, inside the text."""

from pathlib import Path

import pytest
from PIL import Image

from tests.build.oracle import make_processor
from tests.checkpoints.queries import PAD, kosmos2
from vlmc.errors import VlmcError
from vlmc.families import by_model_type
from vlmc.families.prompts import read_prompt
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.runtime.images import prepare
from vlmc.runtime.positions import prompt_positions
from vlmc.runtime.prompt import PROMPT_FILE, PromptBuilder
from vlmc.runtime.types import Prompt
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

SIZE: Json = {"height": 56, "width": 56}
IMAGES: Json = {"image_processor_type": "CLIPImageProcessor", "size": SIZE, "crop_size": SIZE}
TOWER: Json = {"image_size": 56, "patch_size": 14}
PICTURE = Image.new("RGB", (40, 30), (9, 99, 200))


def facts(images: Json = IMAGES, **changes: object) -> ModelFacts:
    config: Json = {"model_type": "kosmos-2", "vision_config": TOWER} | changes
    return by_model_type("kosmos-2").facts(Checkpoint(config, {}, images, {}, {}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text_config": {"embed_dim": 64, "attention_heads": 5}}, "does not divide into 5 heads"),
        ({"text_config": {"embed_dim": 2, "attention_heads": 1}}, "too small for positions"),
        ({"text_config": {"eos_token_id": "x"}}, "eos_token_id"),
        ({"images": IMAGES | {"crop_size": 28}}, "28 x 28 pixels, the vision tower takes 56 x 56"),
        ({"latent_query_num": 0}, "latent_query_num"),
    ],
)
def test_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(**changes)  # type: ignore[arg-type]


def test_sizes_that_are_left_out_are_the_classs() -> None:
    from transformers import Kosmos2Config

    found, config = facts(), Kosmos2Config()
    text = config.text_config
    assert (found.text.layers, found.text.hidden) == (text.num_hidden_layers, text.hidden_size)
    assert (found.text.heads, found.text.vocab) == (text.num_attention_heads, text.vocab_size)
    assert found.text.max_positions == text.max_position_embeddings
    assert found.min_image_tokens == config.latent_query_num
    assert found.ends == (text.eos_token_id,)
    assert found.positions.options["skipped"] == text.pad_token_id
    assert facts(text_config={"eos_token_id": [5, 6]}).ends == (5, 6)
    # An old spelling of a size, which the published checkpoint has.
    assert facts({**IMAGES, "use_square_size": True}, vision_config=TOWER)


class Both:
    """A checkpoint's processor, and what a bundle of it would make of a prompt."""

    def __init__(self, folder: Path) -> None:
        checkpoint = kosmos2(folder / "model")
        self.theirs = make_processor(checkpoint)
        family = by_model_type("kosmos-2")
        self.facts = family.facts(read_checkpoint(checkpoint))
        self.spec, files = read_prompt(
            checkpoint,
            family.image_token,
            None,
            self.facts.text.vocab,
            plain_image=family.plain_image,
            opening=self.facts.opening,
            image_frame=family.image_frame,
            add_special_tokens=family.special_tokens,
            leading_images=family.leading_images,
            leading_text=family.leading_text,
            numbered_after=family.numbered_after,
        )
        bundle = folder / "bundle"
        (bundle / "processor").mkdir(parents=True)
        for name, content in files.items():
            (bundle / "processor" / name).write_bytes(content)
        (bundle / PROMPT_FILE).write_text(self.spec.model_dump_json())
        self.ours = PromptBuilder.load(bundle)

    def built(self, text: str) -> Prompt:
        parts: list[Json] = [{"type": "text", "text": text}, {"type": "image"}]
        image = prepare(PICTURE, self.facts.images)
        return self.ours.build([{"role": "user", "content": parts}], [image])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("kosmos2"))


TEXTS = ["<grounding> An image of", "", " a \n", "<phrase>it</phrase><object><patch_index_0003>"]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_places_are_those_of_transformers(both: Both, text: str) -> None:
    theirs = both.theirs(text=[text], images=[PICTURE])
    prompt = both.built(text)
    assert prompt.token_ids.tolist() == theirs["input_ids"][0]
    places = (prompt.feature_index >= 0).astype(int).tolist()
    assert places == theirs["image_embeds_position_mask"][0]
    assert prompt.feature_index.max() == 4


def test_a_text_that_spells_the_marks_of_a_picture_stays_text(both: Both) -> None:
    marks = both.theirs.tokenizer.convert_tokens_to_ids(["<image>", "</image>", "</s>"])
    ids = both.built("an <image> and </image> and </s>").token_ids.tolist()
    assert [ids.count(mark) for mark in marks] == [1, 1, 0]


def test_padding_takes_no_position_wherever_it_stands(both: Both) -> None:
    import torch
    from transformers.models.kosmos2.modeling_kosmos2 import (
        Kosmos2TextSinusoidalPositionalEmbedding as Embedding,
    )

    prompt = both.built("a picture")
    assert PAD in prompt.token_ids.tolist()
    found, following = prompt_positions(prompt, both.facts.positions)
    ids = torch.from_numpy(prompt.token_ids)[None]
    expected = Embedding.create_position_ids_from_input_ids(ids, PAD)[0]
    assert found.tolist() == expected.tolist()
    after = Embedding.create_position_ids_from_input_ids(torch.tensor([[7]]), PAD, ids.shape[1])
    assert following == int(after)


def test_a_prompt_without_a_picture_is_refused(both: Both) -> None:
    with pytest.raises(VlmcError, match="takes no prompt without an image"):
        both.ours.build([{"role": "user", "content": "a"}], [])


def test_a_tokenizer_without_the_mark_is_refused(both: Both, tmp_path: Path) -> None:
    folder = kosmos2(tmp_path)
    with pytest.raises(VlmcError, match="the image's placeholder, '<picture>', is not in the"):
        read_prompt(folder, "<picture>", None, 400, plain_image="")
