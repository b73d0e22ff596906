"""The bundle's tokenizer: rendered prompts to ids, ids to text."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from vlmc.errors import VlmcError
from vlmc.runtime.detokenize import Stream, clean_up, open_stream
from vlmc.runtime.injection import Guard, find_controls


class StreamDecoder:
    """One answer's text, as its tokens come; its pieces joined are ``decode`` of all of them."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def push(self, id: int) -> str:
        """The text that is certain with this token; may be empty."""
        return self._stream.push(id)

    def finish(self) -> str:
        """What was held back, once the last token was pushed."""
        return self._stream.finish()


class TextTokenizer:
    """``tokenizer.json`` with what transformers adds to it on decoding.

    Args:
        data: The bytes of ``tokenizer.json``.
        clean_up_tokenization_spaces: transformers' flag of that name; BPE ignores it.
        at: The file, for errors.

    Raises:
        VlmcError: The file is not a tokenizer.
    """

    def __init__(
        self,
        data: bytes,
        *,
        clean_up_tokenization_spaces: bool = False,
        at: str = "tokenizer.json",
    ) -> None:
        try:
            tokenizer = Tokenizer.from_buffer(data)
        except Exception as error:  # the library has no narrower type
            raise VlmcError(f"this is not a tokenizer: {error}", at=at) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        is_bpe = type(tokenizer.model).__name__ == "BPE"
        self._clean = clean_up_tokenization_spaces and not is_bpe
        # The library leaves tokens out by their text, which a normalizer may have changed.
        self._special = frozenset(
            id
            for id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special and tokenizer.id_to_token(id) == token.content
        )

    def token_to_id(self, token: str) -> int | None:
        """The id of a token's exact text, or None."""
        return self._tokenizer.token_to_id(token)

    def is_added(self, token: str) -> bool:
        """Whether texts are split at this token, whatever stands around it."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return any(entry.content == token for entry in added)

    def encode(self, text: str) -> list[int]:
        """Ids of a text the model's own format writes: special tokens count, none are added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def guard(
        self,
        named: Iterable[str],
        literals: str,
        texts: Iterable[str] = (),
        words: Iterable[str] = (),
    ) -> Guard:
        """What keeps texts from becoming special tokens; see ``vlmc.runtime.injection``."""
        controls = find_controls(self._tokenizer, named, literals, words)
        return Guard(self._tokenizer, controls, texts)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``, as transformers' ``tokenizer.decode``."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return clean_up(text) if self._clean else text

    def stream(self) -> StreamDecoder:
        """A decoder for one answer, special tokens left out."""
        return StreamDecoder(open_stream(self._tokenizer, self._special, self._clean))
