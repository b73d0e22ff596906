"""Admission: requests outside what the bundle was compiled for are refused, never cut."""

from vlmc.bundle.manifest import Limits
from vlmc.errors import VlmcError
from vlmc.runtime.sampling import check_number

DEFAULT_NEW_TOKENS = 256


def check_images(count: int, limits: Limits) -> None:
    """Refuses a prompt with more images than the bundle allows.

    Raises:
        VlmcError: Names the limit, the count and the recipe's key.
    """
    if count > limits.max_images:
        raise VlmcError(
            f"{count} images in one prompt, this bundle takes {limits.max_images}",
            at="images",
            hint="rebuild with a larger 'images.max-per-prompt', where the model takes more",
        )


def answer_room(
    prompt_tokens: int, max_new_tokens: int | None, limits: Limits, *, all_of_them: bool = False
) -> int:
    """How many tokens may follow a prompt of ``prompt_tokens``.

    Prompt and answer share ``ctx-len``. An answer that reaches its end stops there with
    ``finish_reason`` "length"; only a request for exactly so many tokens is refused.

    Args:
        prompt_tokens: Tokens of the prompt, image placeholders included.
        max_new_tokens: As requested; None is ``DEFAULT_NEW_TOKENS``.
        limits: The bundle's.
        all_of_them: The end token is ignored, so exactly ``max_new_tokens`` are wanted.

    Raises:
        VlmcError: The prompt is empty or leaves no room; names limit, value and recipe key.
    """
    if max_new_tokens is not None:
        check_number("max-new-tokens", max_new_tokens, kind=int, low=1, high=2**31 - 1)
    if prompt_tokens == 0:
        raise VlmcError("the prompt is empty", at="prompt")
    left = limits.ctx_len - prompt_tokens
    hint = "shorten the prompt, or rebuild with a larger 'ctx-len' in the recipe"
    if left < 1:
        raise VlmcError(
            f"the prompt takes {prompt_tokens} tokens and the answer at least 1, "
            f"ctx-len is {limits.ctx_len}",
            at="prompt",
            hint=hint,
        )
    if all_of_them and max_new_tokens is not None and max_new_tokens > left:
        raise VlmcError(
            f"{max_new_tokens} tokens after a prompt of {prompt_tokens} do not fit "
            f"ctx-len {limits.ctx_len}",
            at="max-new-tokens",
            hint=hint,
        )
    wanted = DEFAULT_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    return min(wanted, left)
