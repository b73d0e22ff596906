import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.chat_checkpoints import SENTENCES, TOKENIZERS, llava_tokenizer, special
from vlmc.errors import VlmcError
from vlmc.runtime.detokenize import clean_up
from vlmc.runtime.tokenizer import TextTokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=150, special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def bpe_suffix() -> Tokenizer:
    """CLIP's and GPT-1's kind: the last piece of a word carries the space."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def metaspace_decoder(scheme: str) -> Tokenizer:
    tokenizer = TOKENIZERS["metaspace-llama"]()
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tokenizer


ALL = {
    **{kind: lambda kind=kind: llava_tokenizer(kind) for kind in TOKENIZERS},
    "word-piece": word_piece,
    "bpe-suffix": bpe_suffix,
    "metaspace": lambda: metaspace_decoder("always"),
    "metaspace-never": lambda: metaspace_decoder("never"),
}
MADE = {kind: make() for kind, make in ALL.items()}


@pytest.fixture(scope="session")
def fast():
    """transformers' wrapper of each."""
    from transformers import PreTrainedTokenizerFast

    cache = {}

    def get(kind, cleaned):
        if (kind, cleaned) not in cache:
            cache[kind, cleaned] = PreTrainedTokenizerFast(
                tokenizer_object=MADE[kind], clean_up_tokenization_spaces=cleaned
            )
        return cache[kind, cleaned]

    return get


def ours(kind: str, cleaned: bool) -> TextTokenizer:
    return TextTokenizer(MADE[kind].to_str().encode(), clean_up_tokenization_spaces=cleaned)


def interesting(tokenizer: Tokenizer) -> list[int]:
    """Ids whose text is odd alone: spaces, punctuation, byte tokens, special tokens."""
    odd = {" ", ".", ",", "?", "!", "'", "'s", "n", "n't", "'m", "▁", "Ġ", "▁'", "▁.", "Ċ"}
    vocabulary = tokenizer.get_vocab()
    found = [id for token, id in vocabulary.items() if token in odd or token.startswith("<")]
    return sorted(found)


@pytest.mark.parametrize("cleaned", [False, True])
@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_pieces_joined_are_transformers_decoding(fast, kind, cleaned, data):
    tokenizer = MADE[kind]
    size = tokenizer.get_vocab_size()
    any_id = st.one_of(st.integers(0, size + 3), st.sampled_from(interesting(tokenizer)))
    ids = data.draw(st.lists(any_id, max_size=24))
    wanted = fast(kind, cleaned).decode(ids, skip_special_tokens=True)
    mine = ours(kind, cleaned)
    assert mine.decode(ids) == wanted
    stream = mine.stream()
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.finish() == wanted


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("words", ["It's a café; they're apart! 🙂 你好", "  two  spaces \n", ""])
def test_whole_texts_come_back(fast, kind, words):
    ids = MADE[kind].encode(words, add_special_tokens=False).ids
    stream = ours(kind, False).stream()
    pieces = [stream.push(id) for id in ids]
    joined = "".join(pieces) + stream.finish()
    assert joined == fast(kind, False).decode(ids, skip_special_tokens=True)
    if kind == "byte-level":
        assert joined == words


@pytest.mark.parametrize("kind", ["byte-level", "legacy-llama", "metaspace-llama", "word-level"])
def test_text_is_not_held_back(kind):
    """Once a plain token is known, all before it has been given."""
    words = "What is in the picture? There is a red ball"
    ids = MADE[kind].encode(words, add_special_tokens=False).ids
    stream = ours(kind, False).stream()
    given = ""
    for count, id in enumerate(ids, start=1):
        given += stream.push(id)
        assert given == ours(kind, False).decode(ids[:count])


def test_a_character_in_several_tokens_comes_whole():
    ids = MADE["byte-level"].encode("🙂", add_special_tokens=False).ids
    assert len(ids) == 4
    stream = ours("byte-level", False).stream()
    assert [stream.push(id) for id in ids] == ["", "", "", "🙂"]


def test_half_a_character_comes_at_the_end():
    ids = MADE["byte-level"].encode("🙂", add_special_tokens=False).ids[:2]
    stream = ours("byte-level", False).stream()
    assert [stream.push(id) for id in ids] == ["", ""]
    assert stream.finish() == ours("byte-level", False).decode(ids) == "\ufffd"


def test_special_tokens_can_be_shown(fast):
    ids = MADE["byte-level"].encode("a <image> b </s>").ids
    assert ours("byte-level", False).decode(ids, skip_special_tokens=False) == "a <image> b </s>"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "n", "t", "'", " ", " ", ".", "!", "ve", "re", "m", "s", "B", "é"]),
        max_size=30,
    )
)
def test_cleaning_in_pieces_is_cleaning_at_once(characters):
    from vlmc.runtime.detokenize import _Cleaned

    class Letters:
        def push(self, id: int) -> str:
            return characters[id]

        def finish(self) -> str:
            return ""

    cleaned = _Cleaned(Letters())
    pieces = [cleaned.push(id) for id in range(len(characters))]
    assert "".join(pieces) + cleaned.finish() == clean_up("".join(characters))


def test_clean_up_is_transformers():
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=MADE["word-level"])
    for text in ("a . b ? c ! d , e", "it 's n't I 'm we 've they 're", "do n ' t", "x ' y"):
        assert clean_up(text) == wrapped.clean_up_tokenization(text)


@pytest.mark.parametrize("kind", ["byte-level", "legacy-llama"])
def test_streaming_is_linear(kind):
    import time

    id = MADE[kind].encode("🙂", add_special_tokens=False).ids[-1]

    def seconds(count: int) -> float:
        stream = ours(kind, False).stream()
        started = time.perf_counter()
        for _ in range(count):
            stream.push(id)
        stream.finish()
        return time.perf_counter() - started

    seconds(100)
    assert min(seconds(8000) for _ in range(3)) < 16 * min(seconds(2000) for _ in range(3)) + 0.01


def test_not_a_tokenizer():
    with pytest.raises(VlmcError, match="not a tokenizer"):
        TextTokenizer(b"{}")


def test_truncation_and_padding_of_the_file_are_off():
    tokenizer = llava_tokenizer("byte-level")
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    loaded = TextTokenizer(tokenizer.to_str().encode())
    ids = loaded.guard([], "").ids(
        "one two three four five six", "one two three four five six", True
    )
    assert len(ids) > 8


def test_unknown_and_added_tokens(fast):
    tokenizer = MADE["byte-level"]
    state = json.loads(tokenizer.to_str())
    assert any(not token["special"] for token in state["added_tokens"])
    loaded = ours("byte-level", False)
    assert loaded.token_to_id("<image>") == tokenizer.token_to_id("<image>")
    assert loaded.token_to_id("absent") is None
    assert loaded.is_added("<image>")
    assert not loaded.is_added("a")


def test_ids_added_by_the_tokenizer_are_kept():
    tokenizer = TOKENIZERS["byte-level"]()
    tokenizer.add_tokens([special("<s>")])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    guard = TextTokenizer(tokenizer.to_str().encode()).guard([], "")
    broken = guard.broken("<s> x")
    assert guard.ids("<s> x", broken, True).count(bos) == 1
    assert guard.ids("<s> x", broken, False).count(bos) == 0


def test_what_a_unigram_vocabulary_lacks_is_no_control_token():
    """A text that is part of a control token is taken apart to be looked at, and stays as it is."""
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("b", -2.0)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(["<unk>", "|SPEAKER|"])
    tokenizer = TextTokenizer(made.to_str().encode())
    guard = tokenizer.guard(["<unk>", "|SPEAKER|"], "")
    for text in ("a", "b", "a b|spe", "é"):
        ids = guard.ids(text, guard.broken(text), add_special_tokens=False)
        assert ids == made.encode(text, add_special_tokens=False).ids
