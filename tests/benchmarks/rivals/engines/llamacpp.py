"""llama.cpp through llama-cpp-python's bindings, one call of its C library after the other."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.benchmarks.rivals.session import Question, Read

CONTEXT = 1024


class LlamaCpp:
    def __init__(
        self, model: str, projector: str | None, template: str, threads: int, rows: int
    ) -> None:
        import llama_cpp as lib

        self.lib = lib
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(
            model.encode(), lib.llama_model_default_params()
        )
        options = lib.llama_context_default_params()
        options.n_ctx = CONTEXT * rows
        options.n_batch = options.n_ubatch = CONTEXT
        options.n_seq_max = rows
        options.n_threads = options.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, options)
        if not self.model or not self.context:
            raise RuntimeError("llama.cpp could not open the model")
        self.words = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.words)
        self.template = template
        self.eyes: Any = None
        if projector is not None:
            import llama_cpp.mtmd_cpp as mtmd

            self.mtmd = mtmd
            seen = mtmd.mtmd_context_params_default()
            seen.use_gpu, seen.n_threads, seen.print_timings = False, threads, False
            seen.warmup = False
            self.eyes = mtmd.mtmd_init_from_file(projector.encode(), self.model, seen)
            if not self.eyes:
                raise RuntimeError("llama.cpp could not open the vision tower")

    def answer(self, question: Question, first: Callable[[], None]) -> Read:
        self._forget()
        vision: float | None = None
        if self.eyes is None:
            chance = random.Random(question.text)
            tokens = self._tokens(self._rendered(question))
            tokens += [chance.randrange(300, self.size) for _ in range(question.image_tokens)]
            self._decode(tokens)
            count = end = len(tokens)
        else:
            count, end, vision = self._read_picture(question)
        token = self._greedy(-1)
        first()
        for step in range(question.tokens - 1):
            self._decode([token], start=end + step)
            token = self._greedy(-1)
        return Read(count, vision)

    def together(self, questions: Sequence[Question]) -> tuple[int, float]:
        self._forget()
        starts, tokens = [], []
        for row, question in enumerate(questions):
            words = self._tokens(self._rendered(question))
            self._decode(words, row=row)
            starts.append(len(words))
            tokens.append(self._greedy(-1))
        count, started = len(questions), time.perf_counter()
        batch = self.lib.llama_batch_init(count, 0, 1)
        for step in range(questions[0].tokens - 1):
            batch.n_tokens = count
            for row in range(count):
                self._fill(batch, row, tokens[row], starts[row] + step, row, True)
            self._run(batch)
            tokens = [self._greedy(row) for row in range(count)]
        seconds = time.perf_counter() - started
        self.lib.llama_batch_free(batch)
        return count * (questions[0].tokens - 1), seconds

    def _read_picture(self, question: Question) -> tuple[int, int, float]:
        """Prefills picture and text; tokens, the next position, seconds up to the features."""
        mtmd, lib = self.mtmd, self.lib
        started = time.perf_counter()
        assert question.image is not None
        bitmap = mtmd.mtmd_helper_bitmap_init_from_file(self.eyes, question.image.encode(), False)
        marked = self._rendered(question, mtmd.mtmd_default_marker().decode()).encode()
        text = mtmd.mtmd_input_text(marked, len(marked), False, True)
        chunks = mtmd.mtmd_input_chunks_init()
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if mtmd.mtmd_tokenize(self.eyes, chunks, ctypes.byref(text), bitmaps, 1):
            raise RuntimeError("mtmd_tokenize failed")
        vision = time.perf_counter() - started
        position, count = lib.llama_pos(0), 0
        number = mtmd.mtmd_input_chunks_size(chunks)
        for index in range(number):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            count += mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            place = (position, 0, CONTEXT)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                last = index == number - 1
                failed = mtmd.mtmd_helper_eval_chunk_single(
                    self.eyes, self.context, chunk, *place, last, ctypes.byref(position)
                )
            else:
                started = time.perf_counter()
                failed = mtmd.mtmd_encode_chunk(self.eyes, chunk)
                vision += time.perf_counter() - started
                failed = failed or mtmd.mtmd_helper_decode_image_chunk(
                    self.eyes,
                    self.context,
                    chunk,
                    mtmd.mtmd_get_output_embd(self.eyes),
                    *place,
                    ctypes.byref(position),
                    mtmd.mtmd_helper_post_decode_callback(),
                    None,
                )
            if failed:
                raise RuntimeError(f"chunk {index} failed with {failed}")
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        return count, position.value, vision

    def _rendered(self, question: Question, marker: str | None = None) -> str:
        """The prompt as the chat template gives it; ``marker`` stands for the picture."""
        head, tail = self.template.split("TEXT")
        head, _, after = head.partition("IMAGE")
        return head + (marker + after if marker is not None else "") + question.text + tail

    def _tokens(self, text: str) -> list[int]:
        raw = text.encode()
        room = (self.lib.llama_token * (len(raw) + 8))()
        count = self.lib.llama_tokenize(self.words, raw, len(raw), room, len(room), False, True)
        return list(room[:count])

    def _decode(self, tokens: list[int], *, start: int = 0, row: int = 0) -> None:
        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            self._fill(batch, index, token, start + index, row, index == len(tokens) - 1)
        self._run(batch)
        self.lib.llama_batch_free(batch)

    def _fill(
        self, batch: Any, index: int, token: int, position: int, row: int, logits: bool
    ) -> None:
        batch.token[index] = token
        batch.pos[index] = position
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = row
        batch.logits[index] = logits

    def _run(self, batch: Any) -> None:
        if code := self.lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gave {code}")

    def _greedy(self, index: int) -> int:
        import numpy as np

        logits = self.lib.llama_get_logits_ith(self.context, index)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self.size,))))

    def _forget(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)


def open_session(
    model: str, projector: str | None, template: str, threads: int, rows: int
) -> LlamaCpp:
    return LlamaCpp(model, projector, template, threads, rows)
