"""Towers that transformers asks timm for, from families instead: no build needs timm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def own_towers(make: Callable[..., Any] | None) -> Iterator[None]:
    """While it is open, ``TimmWrapperModel`` holds modules that ``make`` builds.

    The wrapper itself stays transformers' own (``transformers.models.timm_wrapper``), and so do
    the names of its parameters, ``timm_model.*``.

    Args:
        make: ``(architecture, **model_args) -> nn.Module`` with timm's parameter names and its
            ``forward_features``; None: nothing is put in timm's place.
    """
    if make is None:
        yield
        return
    from transformers.models.timm_wrapper import modeling_timm_wrapper as wrapper

    def create(config: Any, **arguments: Any) -> Any:
        # The wrapper asks for no classifier; that is all these towers can do.
        asked = {key: value for key, value in arguments.items() if key != "num_classes"}
        return make(config.architecture, **asked)

    kept = wrapper.requires_backends, wrapper._create_timm_model_with_error_handling
    wrapper.requires_backends = lambda *_: None
    wrapper._create_timm_model_with_error_handling = create
    try:
        yield
    finally:
        wrapper.requires_backends, wrapper._create_timm_model_with_error_handling = kept
