"""transformers in float32 as the oracle, its weights streamed: a layer at a time in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.bundle.manifest import ImageSpec
from vlmc.machine import processors
from vlmc.passes.abreast import abreast
from vlmc.passes.answers import Expected
from vlmc.passes.checkpoint import TensorRef
from vlmc.passes.feature_counts import counted
from vlmc.passes.image_features import IMAGE_INPUTS, image_features
from vlmc.passes.parameters import adopt_buffers, match_names, untie_different
from vlmc.passes.processor import make_processor
from vlmc.passes.quiet import quiet
from vlmc.passes.token_types import ask_token_types
from vlmc.passes.transform import build_module
from vlmc.passes.upstream import run_by_transformers
from vlmc.passes.weight_stream import keep_freed_memory
from vlmc.runtime.images import image_tokens
from vlmc.schema import Json

_LOGGER = "transformers"
# Of conversations asked abreast: squares of their lengths, in all.
_SCORES = 1 << 22
# Of a question whose pictures have more numbers, a tower remembers too much to wait for the others.
_SMALL_PICTURES = 1 << 19


@dataclass(frozen=True)
class Asking:
    """One conversation, and what is wanted of it.

    Attributes:
        messages: Chat messages of image and text parts.
        pictures: PIL images, in their order.
        tokens: Length of the answer.
        features: Whether image features are answered too.
        listeners: By module, what is called before it with what its forward is given.
        within: Makes the context that it is asked in.
    """

    messages: Sequence[Json]
    pictures: Sequence[Any]
    tokens: int
    features: bool = True
    listeners: Mapping[str, Callable[[Any, tuple[Any, ...]], None]] = field(default_factory=dict)
    within: Callable[[], AbstractContextManager[None]] = nullcontext


class Reference:
    """A transformers model and processor over a checkpoint folder, never whole in memory."""

    def __init__(
        self,
        folder: Path,
        index: Mapping[str, TensorRef],
        images: ImageSpec,
        plain_image: str,
        template: str | None = None,
        deepstack: Collection[int] = (),
        timm_tower: Callable[[Any], Any] | None = None,
        part: str | None = None,
    ) -> None:
        """Builds model and processor.

        Raises:
            VlmcError: transformers cannot make the checkpoint's processor.
        """
        import torch

        from vlmc.passes.streamed import stream_weights

        model: Any = build_module(folder, "eager", timm_tower=timm_tower, part=part)
        matched = match_names(model, index)
        adopt_buffers(model, matched)
        untie_different(model, index, matched)
        model.tie_weights(recompute_mapping=False)
        keep_freed_memory()
        # torch knows the processors of its mask, and nothing of a container's share of them.
        torch.set_num_threads(min(torch.get_num_threads(), math.ceil(processors())))
        stream_weights(model, index, matched, _of_the_decoder(model))
        self.model = model
        self.processor = make_processor(folder, images)
        ask_token_types(self.processor, model)
        self.processor.chat_template = self.processor.chat_template or template
        self.images = images
        self.plain_image = plain_image
        self.deepstack = deepstack

    def answer(
        self, messages: Sequence[Json], pictures: Sequence[Any], max_new_tokens: int
    ) -> Expected:
        """Greedy tokens and their logits for one conversation; pictures are PIL images.

        Raises:
            VlmcError: transformers cannot run the checkpoint, or counts other image tokens.
            jinja2.TemplateError: The chat template refuses the conversation.
        """
        return next(self.answers([Asking(messages, pictures, max_new_tokens)]))

    def answers(self, asked: Sequence[Asking], unwanted: Event | None = None) -> Iterator[Expected]:
        """The same for each of several, in their order; several are asked abreast.

        Args:
            asked: What is asked.
            unwanted: Ends it soon, once it is set.

        Raises:
            UnwantedError: That was so.
            VlmcError: The processor counts other image tokens than the model makes.
            jinja2.TemplateError: The model's chat template refuses a conversation.
        """
        for some in _rounds(asked, self.images):
            models = [self.model, *(_alike(self.model) for _ in some[1:])]
            asks = (partial(self._answer, *pair) for pair in zip(models, some, strict=True))
            with quiet(_LOGGER):
                found = abreast(list(asks), unwanted)
            yield from found

    def _answer(self, model: Any, asked: Asking) -> Expected:
        import torch
        from transformers import GenerationConfig

        from vlmc.passes.streamed import WAIT_ALWAYS

        # No end token: past it there would be nothing to compare.
        settings = GenerationConfig(
            max_new_tokens=asked.tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        for module in model.modules():
            # BLIP-2 and its kin hand a question to the decoder's own ``generate``.
            if getattr(module, "generation_config", None) is not None:
                module.generation_config = settings
        hooks = [
            model.get_submodule(name).register_forward_pre_hook(listener)
            for name, listener in asked.listeners.items()
        ]
        with torch.no_grad(), run_by_transformers(), counted(), asked.within():
            inputs = self._inputs(asked.messages, asked.pictures)
            WAIT_ALWAYS.set(_numbers(inputs) <= _SMALL_PICTURES)
            wanted = asked.features and asked.pictures
            features = self._features(model, inputs, asked.pictures) if wanted else []
            made = model.generate(**inputs)
        for hook in hooks:
            hook.remove()
        length = inputs["input_ids"].shape[1]
        return Expected(
            prompt_token_ids=inputs["input_ids"][0].tolist(),
            features=features,
            token_ids=made.sequences[0, length:].tolist(),
            logits=torch.cat(made.logits).float().numpy(),
        )

    def _features(
        self, model: Any, inputs: Any, pictures: Sequence[Any]
    ) -> list[NDArray[np.float32]]:
        rows, marks = image_features(model, inputs, self.deepstack)
        # Without a template, the processor was given them one by one.
        among = len(pictures) if self.processor.chat_template is not None else 1
        counts = [image_tokens(p.height, p.width, self.images, count=among) for p in pictures]
        split = np.split(rows, np.cumsum(counts)[:-1])
        return split if marks is None else [np.concatenate([own, marks]) for own in split]

    def _inputs(self, messages: Sequence[Json], pictures: Sequence[Any]) -> Any:
        if self.processor.chat_template is None:
            text = "".join(
                self.plain_image if part["type"] == "image" else str(part["text"])
                for part in messages[0]["content"]  # type: ignore[attr-defined]
            )
            return self.processor(text=[text], images=list(pictures) or None, return_tensors="pt")
        remaining = iter(pictures)
        filled = [
            {
                **message,
                "content": [
                    {"type": "image", "image": next(remaining)} if part["type"] == "image" else part
                    for part in message["content"]  # type: ignore[attr-defined]
                ],
            }
            for message in messages
        ]
        text = self.processor.apply_chat_template(filled, add_generation_prompt=True)
        return self._processed(filled, text, pictures)

    def _processed(self, messages: Any, text: str, pictures: Sequence[Any]) -> Any:
        asked = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        try:
            return self.processor.apply_chat_template(messages, tokenize=True, **asked)
        except ValueError:
            # GOT-OCR 2's refuses a batch of lists, and texts without a picture.
            if pictures:
                return self.processor(text=[text], images=list(pictures), return_tensors="pt")
            return self.processor.tokenizer(text, return_tensors="pt")


def _rounds(asked: Sequence[Asking], images: ImageSpec) -> Iterator[Sequence[Asking]]:
    """Those to ask abreast: attention's scores of each are held until the last one has its own."""
    some: list[Asking] = []
    scores = 0
    for one in asked:
        words = sum(len(str(part)) for message in one.messages for part in message.values())
        counts = (
            image_tokens(p.height, p.width, images, count=len(one.pictures)) for p in one.pictures
        )
        own = (words + sum(counts)) ** 2
        if some and scores + own > _SCORES:
            yield some
            some, scores = [], 0
        some.append(one)
        scores += own
    if some:
        yield some


def _numbers(inputs: Any) -> int:
    """Of the pictures, as the processor gives them."""
    return sum(
        tensor.numel()
        for tensor in map(inputs.get, IMAGE_INPUTS)
        if hasattr(tensor, "is_floating_point") and tensor.is_floating_point()
    )


def _alike(model: Any) -> Any:
    """A copy of a model over the same tensors: what a model remembers is each copy's own."""
    kept = (*model.parameters(), *model.buffers())
    return deepcopy(model, {id(tensor): tensor for tensor in kept})


def _of_the_decoder(model: Any) -> set[str]:
    """Parameters that all questions wait for together: the decoder's, and the head.

    With large pictures, a tower has more to remember meanwhile, and is small beside them.
    """
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    [path] = [name for name, module in model.named_modules() if module is words]
    decoder = path.rpartition(".")[0]
    return {
        name
        for name, parameter in model.named_parameters()
        if name.startswith(decoder) or (head is not None and parameter is head.weight)
    }
