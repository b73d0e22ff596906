"""What a checkpoint has done to logits, sampled or not: transformers' processors in numpy."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.bundle.manifest import LogitsSpec

Floats = NDArray[np.floating[Any]]

_NOTHING = LogitsSpec()


class Rules:
    """The rules of one answer, and the tokens they count.

    Mirrors SequenceBias-, RepetitionPenalty-, NoRepeatNGram-, NoBadWords-, MinLength-,
    ForcedEOSToken-, SuppressTokens- and SuppressTokensAtBeginLogitsProcessor, in the order of
    ``generate``.

    Args:
        spec: What the checkpoint asks for.
        prompt: The prompt's token ids, image placeholders among them: transformers counts both.
        penalty: The repetition penalty; None: the checkpoint's; 1 is off.
        ends: Token ids that end the answer.
        room: Most tokens it may have; None: any number.

    Attributes:
        idle: Nothing is asked for: scores stay as they are.
    """

    def __init__(
        self,
        spec: LogitsSpec = _NOTHING,
        prompt: Sequence[int] = (),
        *,
        penalty: float | None = None,
        ends: Collection[int] = (),
        room: int | None = None,
    ) -> None:
        self.spec = spec
        self.penalty = spec.repetition_penalty if penalty is None else penalty
        others = spec.model_copy(update={"repetition_penalty": 1.0})
        self.idle = self.penalty == 1 and others == _NOTHING
        self._ends = list(ends)
        self._room = room
        self._prompt = len(prompt)
        self._tokens = list(prompt)
        self._seen = set(prompt)
        self._forbidden = [ids for ids in spec.bad_words_ids if ids not in {(e,) for e in ends}]

    def push(self, token: int) -> None:
        """Counts a token of the answer."""
        self._tokens.append(token)
        self._seen.add(token)

    def apply(self, scores: Floats) -> Floats:
        """Changes scores float32 [V] in place; a token that is ruled out gets -inf."""
        spec = self.spec
        made = len(self._tokens) - self._prompt
        if spec.sequence_bias:
            added = np.zeros_like(scores)
            for ids, bias in spec.sequence_bias:
                if self._would_complete(ids):
                    added[_known(ids[-1:], scores)] += np.float32(bias)
            scores += added
        if self.penalty != 1:
            seen = _known(self._seen, scores)
            there, penalty = scores[seen], np.float32(self.penalty)
            scores[seen] = finite(np.where(there < 0, there * penalty, there / penalty))
        self._rule_out_repeats(scores)
        for ids in self._forbidden:
            if self._would_complete(ids):
                scores[_known(ids[-1:], scores)] = -np.inf
        if made < self._shortest():
            scores[_known(self._ends, scores)] = -np.inf
        if spec.forced_eos_token_ids and self._room is not None and made == self._room - 1:
            scores[:] = -np.inf
            scores[_known(spec.forced_eos_token_ids, scores)] = 0
        scores[_known(spec.suppress_tokens, scores)] = -np.inf
        if not made:
            scores[_known(spec.begin_suppress_tokens, scores)] = -np.inf
        return scores

    def _shortest(self) -> int:
        """Tokens of the answer before it may end; ``min_length`` counts the prompt's too."""
        if self.spec.min_new_tokens is not None:
            return self.spec.min_new_tokens
        return self.spec.min_length - self._prompt

    def _would_complete(self, ids: tuple[int, ...]) -> bool:
        """Whether the last of these tokens, chosen next, completes them."""
        before = list(ids[:-1])
        return not before or self._tokens[-len(before) :] == before

    def _rule_out_repeats(self, scores: Floats) -> None:
        size = self.spec.no_repeat_ngram_size
        if not size or len(self._tokens) < size:
            return
        tokens = np.array(self._tokens)
        windows = np.lib.stride_tricks.sliding_window_view(tokens, size)
        same = (windows[:, :-1] == tokens[len(tokens) + 1 - size :]).all(axis=1)
        scores[_known(windows[same, -1].tolist(), scores)] = -np.inf


def finite(scores: Floats) -> Floats:
    """Overflowed scores as the largest number: they are still the likeliest."""
    return np.minimum(scores, np.finfo(np.float32).max)


def _known(ids: Iterable[int], scores: Floats) -> NDArray[np.int64]:
    """Those that have a score: an embedding may know more tokens than the head."""
    found = np.fromiter(ids, np.int64)
    return found[found < len(scores)]
