"""OpenVINO GenAI's continuous batching, on what optimum-intel exported."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.benchmarks.rivals.session import Question, Read

CONTEXT = 1024


class OpenVino:
    def __init__(self, folder: str, threads: int, rows: int, computes: str = "") -> None:
        import openvino_genai as genai

        self.genai = genai
        schedule = genai.SchedulerConfig()
        schedule.max_num_seqs = rows
        schedule.max_num_batched_tokens = CONTEXT * rows  # a prompt in one step
        schedule.enable_prefix_caching = False  # nothing to reuse: it would only cost
        limits: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        if computes:  # its own choice is bf16 where the processor has it, whatever is stored
            limits["INFERENCE_PRECISION_HINT"] = computes
        self.pipe = genai.ContinuousBatchingPipeline(folder, schedule, "CPU", limits)
        self.count = 0

    def answer(self, question: Question, first: Callable[[], None]) -> Read:
        import numpy as np
        import openvino as ov
        from PIL import Image

        assert question.image is not None
        started = time.perf_counter()
        with Image.open(question.image) as picture:
            pixels = ov.Tensor(np.asarray(picture.convert("RGB"))[None])
        handle = self._add(question, [pixels])  # runs the vision tower
        vision = time.perf_counter() - started
        while not handle.can_read():
            self.pipe.step()
        first()
        self._finish()
        tokens = handle.get_vlm_perf_metrics().get_num_input_tokens()
        return Read(tokens, vision)

    def together(self, questions: Sequence[Question]) -> tuple[int, float]:
        handles = [self._add(question, []) for question in questions]
        while not all(handle.can_read() for handle in handles):
            self.pipe.step()
        started = time.perf_counter()
        self._finish()
        return len(questions) * (questions[0].tokens - 1), time.perf_counter() - started

    def _add(self, question: Question, pictures: list[Any]) -> Any:
        options = self.genai.GenerationConfig()
        options.max_new_tokens = question.tokens
        options.ignore_eos = True
        options.do_sample = False
        self.count += 1
        return self.pipe.add_request(self.count, question.text, pictures, options)

    def _finish(self) -> None:
        while self.pipe.has_non_finished_requests():
            self.pipe.step()


def open_session(folder: str, threads: int, rows: int, computes: str = "") -> OpenVino:
    return OpenVino(folder, threads, rows, computes)
