"""InstructBLIP: the prompt's text goes to the vision program as well, by a second tokenizer."""

from pathlib import Path

import pytest
from PIL import Image

from tests.build.oracle import make_processor
from tests.checkpoints.queries import instructblip
from vlmc.errors import VlmcError
from vlmc.families import by_model_type
from vlmc.families.prompts import read_prompt
from vlmc.runtime.features import Chunk
from vlmc.runtime.images import prepare
from vlmc.runtime.prefix import chunk_keys
from vlmc.runtime.prompt import PROMPT_FILE, PromptBuilder
from vlmc.runtime.types import Prompt
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

PICTURE = Image.new("RGB", (40, 30), (9, 99, 200))


class Both:
    """A checkpoint's processor, and what a bundle of it would make of a prompt."""

    def __init__(self, folder: Path) -> None:
        checkpoint = instructblip(folder / "model", qformer={"max_position_embeddings": 20})
        self.theirs = make_processor(checkpoint)
        family = by_model_type("instructblip")
        self.facts = family.facts(read_checkpoint(checkpoint))
        spec, files = read_prompt(
            checkpoint,
            None,
            self.facts.image_token_id,
            self.facts.text.vocab,
            plain_image=family.plain_image,
            extra_tokens=family.extra_tokens,
            leading_images=family.leading_images,
            vision_text=self.facts.vision_text,
        )
        bundle = folder / "bundle"
        (bundle / "processor").mkdir(parents=True)
        for name, content in files.items():
            (bundle / "processor" / name).write_bytes(content)
        (bundle / PROMPT_FILE).write_text(spec.model_dump_json())
        self.ours = PromptBuilder.load(bundle)

    def built(self, text: str) -> Prompt:
        parts: list[Json] = [{"type": "image"}, {"type": "text", "text": text}]
        image = prepare(PICTURE, self.facts.images)
        return self.ours.build([{"role": "user", "content": parts}], [image])

    def read(self, text: str) -> list[int]:
        ids: list[int] = self.built(text).images[0].tensors["qformer_input_ids"][0].tolist()
        return ids


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("instructblip"))


@pytest.mark.parametrize("text", ["What is in?", "", "  ÉTÉ\n42 ", "zzz \ud7ff \u4e2d"])
def test_ids_are_those_of_transformers(both: Both, text: str) -> None:
    theirs = both.theirs(text=[text], images=[PICTURE])
    assert both.read(text) == theirs["qformer_input_ids"][0]
    assert both.built(text).token_ids.tolist() == theirs["input_ids"][0]


@pytest.mark.parametrize("spelled", ["[SEP]", "a [MASK]", "[DEC]b", "<image> is"])
def test_a_text_that_spells_a_special_token_stays_text(both: Both, spelled: str) -> None:
    cls, *inside, sep = both.read(spelled)
    own = both.theirs.qformer_tokenizer
    assert (cls, sep) == (own.cls_token_id, own.sep_token_id)
    assert not set(inside) & (set(own.all_special_ids) - {own.unk_token_id})
    # The tokenizer has neither angle bracket.
    text = "".join(own.convert_ids_to_tokens(inside)).replace("##", "")
    assert text == spelled.lower().replace(" ", "").replace("<", "[UNK]").replace(">", "[UNK]")


def test_a_text_too_long_for_the_qformer_is_refused(both: Both) -> None:
    assert len(both.read(" a" * 18)) == 20
    with pytest.raises(VlmcError, match="21 tokens for the vision program, which takes 1 to 20"):
        both.built(" a" * 19)


def test_what_a_slot_holds_depends_on_the_text(both: Both) -> None:
    """The first chunk has image tokens alone; another question makes other features of them."""
    chunk = Chunk(0, 5)
    keys = []
    for text in ("what", "is", "what"):
        prompt = both.built(text)
        positions = prompt.token_ids * 0
        keys += chunk_keys(prompt, positions, [chunk])
    assert keys[0] == keys[2] != keys[1]


def test_a_checkpoint_without_the_second_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = instructblip(tmp_path)
    for path in (folder / "qformer_tokenizer").iterdir():
        path.unlink()
    family = by_model_type("instructblip")
    found = family.facts(read_checkpoint(folder))
    with pytest.raises(VlmcError, match="qformer_tokenizer"):
        read_prompt(
            folder, None, 3, found.text.vocab, plain_image="", vision_text=found.vision_text
        )
