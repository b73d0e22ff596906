"""A prompt's text for a vision program that reads it with the images, by a tokenizer of its own."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vlmc.bundle.manifest import VisionText
from vlmc.errors import VlmcError
from vlmc.runtime.tokenizer import TextTokenizer
from vlmc.runtime.types import PreparedImage


class VisionReader:
    """Tokenizes a prompt and hands the ids to its images, as further inputs of each.

    So whatever is kept by an image's inputs (features, a prompt's beginning) is kept by the text
    too.

    Args:
        spec: Where the ids go, and how many there may be.
        tokenizer: The bytes of the tokenizer's file.

    Raises:
        VlmcError: The file is not a tokenizer.
    """

    def __init__(self, spec: VisionText, tokenizer: bytes) -> None:
        self.spec = spec
        self._guard = TextTokenizer(tokenizer, at=spec.tokenizer).guard([], "")

    def broken(self, text: str) -> str:
        """``text`` where it spells no special token of this tokenizer, see ``Guard.broken``."""
        return self._guard.broken(text)

    def read(
        self,
        plain: str,
        broken: str,
        images: Sequence[PreparedImage],
        *,
        add_special_tokens: bool,
    ) -> tuple[PreparedImage, ...]:
        """The images, each with the prompt's ids.

        Mirrors ``InstructBlipProcessor.__call__``.

        Args:
            plain: The prompt's text.
            broken: It, rendered from texts as ``broken`` returns them.
            images: As they were prepared.
            add_special_tokens: Whether the tokenizer adds its own at the ends.

        Raises:
            VlmcError: The text has more tokens than the vision program has places for, or none.
        """
        ids = self._guard.ids(plain, broken, add_special_tokens)
        if not 0 < len(ids) <= self.spec.most:
            raise VlmcError(
                f"the prompt has {len(ids)} tokens for the vision program, which takes "
                f"1 to {self.spec.most}",
                at="messages",
                hint="shorten the prompt" if ids else "write something",
            )
        given = {self.spec.input: np.array([ids], np.int64)}
        return tuple(replace(image, tensors=image.tensors | given) for image in images)
