"""transformers' own ``generate``: eager, or with the decoder under ``torch.compile``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.benchmarks.rivals.engines.inputs import model_inputs, rendered
from tests.benchmarks.rivals.session import Question, Read


class Transformers:
    def __init__(self, folder: str, dtype: str, compiled: bool, threads: int) -> None:
        import torch
        import transformers as hf

        torch.set_num_threads(threads)
        self.folder = folder
        self.model = hf.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()
        self.tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        self.options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
        language = self.model.model
        decoder = getattr(language, "language_model", None) or language.text_model
        self.decoder_started = 0.0
        decoder.register_forward_pre_hook(self._note)
        if compiled:
            # The cache must keep its shape; prefill and decode are compiled apart.
            self.options["cache_implementation"] = "static"
            self.options["max_length"] = None
            self.options["disable_compile"] = True
            decoder.forward = torch.compile(decoder.forward, dynamic=False)

    def _note(self, *_: object) -> None:
        self.decoder_started = self.decoder_started or time.perf_counter()

    def answer(self, question: Question, first: Callable[[], None]) -> Read:
        self.decoder_started, started = 0.0, time.perf_counter()
        inputs = model_inputs(self.folder, question, self.model.dtype)
        clock = _Clock(first)
        self._generate(inputs, question.tokens, clock)
        return Read(inputs["input_ids"].shape[1], self.decoder_started - started)

    def together(self, questions: Sequence[Question]) -> tuple[int, float]:
        texts = [rendered(self.tokenizer, question.text, 0) for question in questions]
        inputs = self.tokenizer(
            texts, add_special_tokens=False, padding=True, return_tensors="pt", padding_side="left"
        )
        times: list[float] = []
        inputs.pop("token_type_ids", None)
        self._generate(
            inputs, questions[0].tokens, _Clock(lambda: times.append(time.perf_counter()))
        )
        return len(questions) * (questions[0].tokens - 1), time.perf_counter() - times[0]

    def _generate(self, inputs: Any, tokens: int, clock: Any) -> None:
        import torch
        import transformers as hf

        with torch.inference_mode():
            self.model.generate(
                **inputs,
                **self.options,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                stopping_criteria=hf.StoppingCriteriaList([clock]),
            )


class _Clock:
    """A stopping criterion that never stops: it is called after each token."""

    def __init__(self, first: Callable[[], None]) -> None:
        self.first: Callable[[], None] | None = first

    def __call__(self, input_ids: Any, scores: Any, **_: object) -> Any:
        import torch

        if self.first is not None:
            self.first()
            self.first = None
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def open_session(folder: str, dtype: str, compiled: bool, threads: int, rows: int) -> Transformers:
    return Transformers(folder, dtype, compiled, threads)
