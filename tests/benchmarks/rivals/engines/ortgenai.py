"""onnxruntime-genai: the language model alone, as its own builder made it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.benchmarks.rivals.session import Question, Read

CONTEXT = 1024


class OrtGenai:
    def __init__(self, folder: str, threads: int, rows: int) -> None:
        import json

        import onnxruntime_genai as genai

        self.genai = genai
        config = genai.Config(folder)
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = genai.Model(config)
        self.words = genai.Tokenizer(self.model)

    def answer(self, question: Question, first: Callable[[], None]) -> Read:
        chance = random.Random(question.text)
        prompt = [int(one) for one in self.words.encode(question.text)]
        prompt += [chance.randrange(300, 40_000) for _ in range(question.image_tokens)]
        generator = self._generator([prompt])
        generator.generate_next_token()
        first()
        for _ in range(question.tokens - 1):
            generator.generate_next_token()
        return Read(len(prompt), None)

    def together(self, questions: Sequence[Question]) -> tuple[int, float]:
        prompts = [[int(one) for one in self.words.encode(one.text)] for one in questions]
        shortest = min(map(len, prompts))
        generator = self._generator([prompt[:shortest] for prompt in prompts])
        generator.generate_next_token()
        started = time.perf_counter()
        for _ in range(questions[0].tokens - 1):
            generator.generate_next_token()
        return len(prompts) * (questions[0].tokens - 1), time.perf_counter() - started

    def _generator(self, prompts: list[list[int]]) -> Any:
        import numpy as np

        options = self.genai.GeneratorParams(self.model)
        options.set_search_options(
            do_sample=False, batch_size=len(prompts), max_length=CONTEXT, min_length=CONTEXT
        )
        generator = self.genai.Generator(self.model, options)
        generator.append_tokens(np.array(prompts, np.int32))
        return generator


def open_session(folder: str, threads: int, rows: int) -> OrtGenai:
    return OrtGenai(folder, threads, rows)
