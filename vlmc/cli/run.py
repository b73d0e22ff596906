"""``vlmc run``: one answer, streamed; or a chat."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, cast

from typer import Argument, Option

from vlmc.cli.notice import tell_portable
from vlmc.errors import VlmcError
from vlmc.schema import Json


def run(
    bundle: Annotated[Path, Argument(help="A version folder, or a NAME folder (its latest).")],
    image: Annotated[
        list[Path] | None, Option("--image", help="A picture; repeat for more.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None, Option("--prompt", help="The question; read from standard input when absent.")
    ] = None,
    messages: Annotated[
        Path | None, Option("--messages", help="A JSON file of chat messages.")
    ] = None,
    system: Annotated[str | None, Option("--system", help="A system message.")] = None,
    max_new_tokens: Annotated[
        int | None, Option("--max-new-tokens", help="Most tokens to generate [default: 256].")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
    ignore_eos: Annotated[
        bool, Option("--ignore-eos", help="Generate all tokens, past the end token.")
    ] = False,
    verify: Annotated[
        bool, Option("--verify", help="Hash every file of the bundle first.")
    ] = False,
    threads: Annotated[
        int | None, Option("--threads", help="Threads [default: this process's physical cores].")
    ] = None,
    sample: Annotated[
        bool, Option("--sample", help="Sample with the values the model's authors suggest.")
    ] = False,
    temperature: Annotated[
        float | None, Option("--temperature", help="Sample; 0 is greedy.")
    ] = None,
    top_k: Annotated[int | None, Option("--top-k", help="Sample among the k likeliest.")] = None,
    top_p: Annotated[
        float | None, Option("--top-p", help="Sample among the likeliest, this much together.")
    ] = None,
    min_p: Annotated[
        float | None, Option("--min-p", help="Sample above this share of the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, Option("--repetition-penalty", help="Above 1: repeat less; 1: off.")
    ] = None,
    seed: Annotated[int | None, Option("--seed", help="Makes sampling repeatable.")] = None,
    stop: Annotated[
        list[str] | None, Option("--stop", help="End before this text; repeat for more.")
    ] = None,
) -> None:
    """Answers one question about pictures, or starts a chat.

    Without --prompt and --messages the question is read from standard input; at a terminal a
    chat begins. Greedy unless a sampling option is given.
    """
    from vlmc.bundle.store import read_bundle
    from vlmc.runtime import Request, Sampling, load, suggested_sampling

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    if sample:
        given = {name: value for name, value in asdict(sampling).items() if value is not None}
        suggested = read_bundle(bundle).manifest.generation.suggested
        sampling = replace(suggested_sampling(suggested), **given)
    if ignore_eos and max_new_tokens is None:
        raise VlmcError("--ignore-eos needs --max-new-tokens", at="--ignore-eos")
    waits = prompt is None and messages is None
    chat = waits and sys.stdin is not None and sys.stdin.isatty()
    if chat and as_json:
        raise VlmcError("--json needs --prompt or --messages", at="--json")
    if prompt is not None and messages is not None:
        raise VlmcError("--prompt and --messages exclude each other", at="--messages")

    if waits:
        read_bundle(bundle)  # a wrong folder is said before a question is waited for

    def request(
        chat_messages: Sequence[Json] | None, text: str | None, images: list[Path]
    ) -> Request:
        return Request(
            messages=chat_messages,
            prompt=text,
            images=images,
            max_new_tokens=max_new_tokens,
            stop=stop or (),
            ignore_eos=ignore_eos,
            sampling=sampling,
            folder=messages.parent if messages else None,
        )

    pictures = image or []
    head: list[Json] = [] if system is None else [{"role": "system", "content": system}]
    if chat:
        from vlmc.cli.chat import converse

        model = load(bundle, threads=threads, verify=verify)
        tell_portable(model)
        converse(model, head, pictures, lambda turns, files: request(turns, None, files))
        return
    if messages is not None:
        asked = request([*head, *_read_messages(messages)], None, pictures)
    else:
        # An empty prompt is one: a chat template has more to say than it.
        text = _read_stdin(needed=not pictures) if prompt is None else prompt
        asked = request([*head, *_question(text, len(pictures))], None, pictures)
    model = load(bundle, threads=threads, verify=verify, reuse=False)
    tell_portable(model)
    stream = model.start(asked)
    if as_json:
        print(json.dumps(stream.finish().to_json()))
        return
    for piece in stream:
        show(piece)
    show("\n")


def show(text: str) -> None:
    """Writes text to standard output at once, whatever its encoding can say; none may be there."""
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _read_stdin(*, needed: bool) -> str:
    try:
        text = "" if sys.stdin is None else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise VlmcError("this is not text in UTF-8", at="standard input") from error
    if needed and not text:
        raise VlmcError("there is no question in it", at="standard input", hint="give --prompt")
    return text.removesuffix("\n")


def _question(text: str, images: int) -> list[Json]:
    from vlmc.runtime.messages import simple_message

    return simple_message(text, images)


def _read_messages(path: Path) -> list[Json]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise VlmcError(f"cannot read it: {error.strerror}", at=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise VlmcError(f"this is not JSON: {error}", at=str(path)) from error
    if not isinstance(value, list):
        raise VlmcError("messages are a list", at=str(path))
    return cast(list[Json], value)
