"""Towers that transformers asks timm for, from families instead: no build needs timm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vlmc.passes.quiet import quiet


@contextmanager
def own_towers(make: Callable[[Any], Any] | None) -> Iterator[None]:
    """While it is open, ``TimmWrapperModel`` holds modules that ``make`` builds.

    The wrapper itself stays transformers' own (``transformers.models.timm_wrapper``), and so do
    the names of its parameters, ``timm_model.*``.

    Args:
        make: ``(vision configuration) -> nn.Module`` with timm's parameter names and its
            ``forward_features``; None: nothing is put in timm's place.
    """
    if make is None:
        yield
        return
    from transformers.models.timm_wrapper import modeling_timm_wrapper as wrapper

    def create(config: Any, **_: Any) -> Any:
        # It is asked for no classifier, and for what the configuration's ``model_args`` say.
        return make(config)

    kept = wrapper.requires_backends, wrapper._create_timm_model_with_error_handling
    # These towers may call the attention function that a configuration names.
    wrapper.TimmWrapperPreTrainedModel._supports_attention_backend = True
    wrapper.requires_backends = lambda *_: None
    wrapper._create_timm_model_with_error_handling = create
    try:
        with quiet("transformers"):  # a word on timm's attention, for eager models
            yield
    finally:
        wrapper.requires_backends, wrapper._create_timm_model_with_error_handling = kept
