"""BLIP-2: what is refused, whose end tokens count, and where its pictures stand in a prompt."""

from pathlib import Path

import pytest
from PIL import Image

from tests.build.oracle import make_processor
from tests.checkpoints.queries import blip_2, instructblip
from vlmc.errors import VlmcError
from vlmc.families import by_model_type
from vlmc.families.blip_2 import ENDS
from vlmc.families.prompts import read_prompt
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.plan import resolve
from vlmc.recipe import Recipe
from vlmc.runtime.images import prepare
from vlmc.runtime.prompt import PromptBuilder
from vlmc.runtime.template import ChatTemplate
from vlmc.runtime.tokenizer import TextTokenizer
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

TEXT: Json = {"model_type": "opt", "hidden_size": 64, "num_attention_heads": 4}
TOWER: Json = {"image_size": 56, "patch_size": 14}
SIZE: Json = {"height": 56, "width": 56}
CONFIG: Json = {
    "model_type": "blip-2",
    "text_config": TEXT,
    "vision_config": TOWER,
    "num_query_tokens": 5,
    "image_token_index": 3,
}


def checkpoint(processor: Json | None = None, size: Json = SIZE, **changes: object) -> Checkpoint:
    images: Json = {"image_processor_type": "BlipImageProcessor", "size": size}
    counted = {"num_query_tokens": 5} if processor is None else processor
    return Checkpoint(CONFIG | changes, counted, images, {}, {})


def facts(processor: Json | None = None, size: Json = SIZE, **changes: object) -> ModelFacts:
    return by_model_type("blip-2").facts(checkpoint(processor, size, **changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text_config": {"model_type": "t5"}}, "'t5' is an encoder and a decoder"),
        ({"text_config": {"model_type": "bart"}}, "'bart' is an encoder and a decoder"),
        ({"text_config": TEXT | {"is_encoder_decoder": True}}, "only decoders are served"),
        ({"text_config": TEXT | {"word_embed_proj_dim": 32}}, "embedded in 32 numbers"),
        ({"text_config": TEXT | {"num_attention_heads": 7}}, "does not divide into 7 heads"),
        ({"text_config": TEXT | {"eos_token_id": "x"}}, "eos_token_id"),
        ({"processor": {}}, "does not say how many tokens a picture takes"),
        (
            {"processor": {"num_query_tokens": 6}},
            "counts 6 tokens for a picture, the model makes 5",
        ),
        ({"size": {"height": 70, "width": 56}}, "56 x 70 pixels, the vision tower takes 56 x 56"),
        ({"size": {"height": 13, "width": 56}}, "56 x 13 pixels"),
        ({"image_token_index": None}, "'image_token_index' is missing"),
    ],
)
def test_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(**changes)  # type: ignore[arg-type]


def test_a_text_model_that_is_not_named_is_an_opt() -> None:
    from transformers import Blip2Config

    found = facts(text_config={}).text
    config = Blip2Config().text_config
    assert found.model_type == config.model_type
    assert (found.layers, found.hidden) == (config.num_hidden_layers, config.hidden_size)
    assert (found.heads, found.vocab) == (config.num_attention_heads, config.vocab_size)
    assert found.max_positions == config.max_position_embeddings


def test_pictures_may_have_fewer_patches_than_the_tower_has_positions() -> None:
    assert facts(size={"height": 28, "width": 56}).min_image_tokens == 5


def test_end_tokens_are_those_of_the_decoders_own_configuration() -> None:
    assert facts(text_config=TEXT | {"eos_token_id": 7}).ends == (7,)
    assert facts(text_config=TEXT | {"eos_token_id": [7, 9]}).ends == (7, 9)
    assert facts(text_config=TEXT).ends == (2,)
    assert facts(text_config=TEXT | {"eos_token_id": None}).ends == ()


@pytest.mark.parametrize("kind", ENDS)
def test_end_tokens_that_are_left_out_are_the_classs(kind: str) -> None:
    from transformers import CONFIG_MAPPING

    assert CONFIG_MAPPING[kind]().eos_token_id == ENDS[kind]


def test_a_prompt_has_one_picture() -> None:
    recipe = Recipe(model="./model", name="model")
    assert resolve(recipe, checkpoint()).limits.max_images == 1
    more = recipe.model_copy(
        update={"images": recipe.images.model_copy(update={"max_per_prompt": 2})}
    )
    with pytest.raises(VlmcError, match="2 images in a prompt; this model takes 1") as caught:
        resolve(more, checkpoint())
    assert caught.value.at == "recipe: images.max-per-prompt"


def test_the_picture_stands_before_the_whole_prompt(tmp_path: Path) -> None:
    folder = blip_2(tmp_path)
    processor = make_processor(folder)
    picture = Image.new("RGB", (40, 30))
    read = read_checkpoint(folder)
    family, found = by_model_type("blip-2"), by_model_type("blip-2").facts(read)
    spec, files = read_prompt(
        folder,
        None,
        found.image_token_id,
        found.text.vocab,
        plain_image=family.plain_image,
        extra_tokens=family.extra_tokens,
        leading_images=family.leading_images,
    )
    words = TextTokenizer(files["tokenizer.json"])
    builder = PromptBuilder(spec, words, None)
    image = prepare(picture, found.images)

    def built(text: str, builder: PromptBuilder = builder) -> list[int]:
        parts: list[Json] = [{"type": "text", "text": text}, {"type": "image"}]
        prompt = builder.build([{"role": "user", "content": parts}], [image])
        assert prompt.feature_index.tolist()[:6] == [0, 1, 2, 3, 4, -1]
        return prompt.token_ids.tolist()

    for text in ("What is in this picture?", ""):
        theirs = processor(text=[text], images=[picture])["input_ids"][0]
        assert built(text) == theirs
    # A text that spells the placeholder takes no picture's place.
    spelled = built("an <image> of </s>")
    assert spelled[:6] == [3, 3, 3, 3, 3, 1]
    assert not {2, 3} & set(spelled[6:])
    with pytest.raises(VlmcError, match="takes no prompt without an image"):
        builder.build([{"role": "user", "content": "a"}], [])
    # A template may say what stands around the text, not where the picture is.
    turns = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}!"
    assert built("a", PromptBuilder(spec, words, ChatTemplate(turns))) == built("a!")
    with pytest.raises(VlmcError, match="writes '<image>', which belongs before the prompt"):
        built("a", PromptBuilder(spec, words, ChatTemplate("<image>" + turns)))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("opt", {}),
        ("gemma2", {"final_logit_softcapping": 3.0, "head_dim": 16}),
        ("granite", {"logits_scaling": 7.0}),
        ("cohere2", {"logit_scale": 0.25}),
    ],
)
@pytest.mark.parametrize("name", ["blip-2", "instructblip"])
def test_logits_are_those_of_the_decoders_own_class(tmp_path, name, text, values):
    import torch
    import transformers as hf

    make = {"blip-2": blip_2, "instructblip": instructblip}[name]
    model = hf.AutoModelForMultimodalLM.from_pretrained(make(tmp_path, text=text, **values))
    family = by_model_type(name)
    ids = torch.tensor([[5, 9, 200, 31]])
    with torch.no_grad():
        hidden = family.decoder(model)(input_ids=ids).last_hidden_state
        found = model.language_model.get_output_embeddings()(hidden)
        made = family.logits(model, found) if family.logits else found
        expected = model.language_model(input_ids=ids).logits
    torch.testing.assert_close(made, expected)
