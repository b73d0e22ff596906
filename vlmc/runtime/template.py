"""Chat templates: jinja2's immutable sandbox with the environment transformers gives them."""

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from vlmc.errors import VlmcError

MAX_OUTPUT = 16 * 1024 * 1024  # characters of one rendered prompt, and of one computed value
MAX_RANGE_STEPS = 1_000_000  # steps of all range() calls of one rendering together
MAX_SECONDS = 10.0
MAX_POWER_BITS = 4096

# A width or precision that is a value, or has more than six digits.
_WIDE_FORMAT = re.compile(r"%[-+ #0]*(?:\*|\d{7}|\d*\.(?:\*|\d{7}))")

# What a template's own expressions can raise; anything else is a bug of ours and keeps its trace.
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's words for training; here it only renders them."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance variable)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Read up to ``{% endgeneration %}``."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_render_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render_body(self, caller: Callable[[], str]) -> str:
        return caller()


class _TemplateDict:
    """``dict`` as templates see it: no attribute of the real type can be reached."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """``dict.fromkeys``."""
        return dict.fromkeys(*args, **kwargs)


class _TemplateNamespace(jinja2.utils.Namespace):
    """``namespace`` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # namespace(self=1) must work
        self, args = args[0], args[1:]
        attrs = dict(*args, **kwargs)
        for name in attrs:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, attrs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the attribute {name!r}")


class _BoundedJoins(jinja2.visitor.NodeTransformer):
    """``a ~ b`` becomes ``(a ~ b) | _bounded``."""

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        bounded = jinja2.nodes.Filter(node, "_bounded", [], [], None, None)
        return bounded.set_lineno(node.lineno)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, with bounds on the values it computes and the time it takes."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})
    deadline = math.inf

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        center, indent = self.filters["center"], self.filters["indent"]
        self.filters["center"] = lambda text, width=80: center(text, _bound(width))
        self.filters["indent"] = lambda text, width=4, *rest, **more: indent(
            text, width if isinstance(width, str) else _bound(width), *rest, **more
        )
        self.filters["tojson"] = _tojson
        self.filters["_bounded"] = _bounded
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _TemplateDict()
        self.globals["namespace"] = _TemplateNamespace

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        _BoundedJoins().visit(tree)
        return tree

    def check_time(self) -> None:
        """Raise when the rendering has taken too long."""
        if time.monotonic() > self.deadline:
            raise OverflowError(f"it takes longer than {MAX_SECONDS:g} seconds")

    def call(self, context: jinja2.runtime.Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method, with no huge number as an argument."""
        self.check_time()
        for value in (*args, *kwargs.values()):
            if isinstance(value, int):
                _bound(value)
        return _bounded(super().call(context, obj, *args, **kwargs))

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        """``left operator right``, refused where the result would be too large."""
        self.check_time()
        if operator == "*":
            for items, times in ((left, right), (right, left)):
                if isinstance(items, str | list | tuple) and isinstance(times, int):
                    _bound(len(items) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if abs(left).bit_length() * max(right, 0) > MAX_POWER_BITS:
                raise OverflowError("a power with too many digits")
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            _bound(len(left) + len(right))
        elif operator == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
            raise OverflowError("a format with so wide a field")
        return super().call_binop(context, operator, left, right)


def _bound(size: int) -> int:
    if size > MAX_OUTPUT:
        raise OverflowError(f"a size of more than {MAX_OUTPUT} characters or items")
    return size


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        _bound(len(value))
    return value


class _Ranges:
    """``range`` with one budget for a whole rendering, so nested loops end too."""

    def __init__(self) -> None:
        self.left = MAX_RANGE_STEPS

    def __call__(self, *args: int) -> range:
        steps = jinja2.sandbox.safe_range(*args)
        self.left -= len(steps)
        if self.left < 0:
            raise OverflowError(f"loops of more than {MAX_RANGE_STEPS} steps")
        return steps


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML.
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class ChatTemplate:
    """One compiled template; mirrors transformers' ``render_jinja_template``.

    A hostile template is contained by the sandbox (no attribute of Python's machinery, nothing
    mutable) and bounded in: the text it writes, the texts it computes with operators and calls,
    numbers given to calls, the steps of its ``range`` loops together, its recursion (Python's
    limit), and in time, which is looked at on each operator, call and piece of output. Not
    bounded: one single ``replace``, ``join`` or filter that makes a huge text of large ones.

    Args:
        source: The template's text.
        at: Its place, for errors.

    Raises:
        VlmcError: The template does not compile.
    """

    def __init__(self, source: str, *, at: str = "chat template") -> None:
        self.source = source
        self._at = at
        self._environment = _Environment()
        try:
            self._tree = self._environment.parse(source)
            self._template = self._environment.from_string(source)
        except (*_TEMPLATE_FAULTS, SyntaxError) as error:
            raise self._fault("does not compile", error) from error

    def literals(self) -> str:
        """The text the template itself can write, NUL between pieces."""
        texts = [node.data for node in self._tree.find_all(jinja2.nodes.TemplateData)]
        constants = (node.value for node in self._tree.find_all(jinja2.nodes.Const))
        return "\0".join([*texts, *(value for value in constants if isinstance(value, str))])

    def render(
        self, messages: Iterable[Mapping[str, object]], variables: Mapping[str, object]
    ) -> str:
        """The prompt's text, generation prompt added.

        Args:
            messages: Plain JSON values, as ``vlmc.runtime.messages`` gives them.
            variables: The special tokens by name (``bos_token``, ...).

        Raises:
            VlmcError: The template refuses the messages, fails, or passes a bound.
        """
        self._environment.deadline = time.monotonic() + MAX_SECONDS
        pieces: list[str] = []
        size = 0
        names: dict[str, object] = {
            "messages": list(messages),
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            "range": _Ranges(),
            **variables,
        }
        try:
            for piece in self._template.generate(names):
                pieces.append(piece)
                size += len(piece)
                _bound(size)
                self._environment.check_time()
        except _TEMPLATE_FAULTS as error:
            raise self._fault("cannot render these messages", error) from error
        return "".join(pieces)

    def _fault(self, what: str, error: BaseException) -> VlmcError:
        line = getattr(error, "lineno", None)
        reason = str(error) or type(error).__name__
        return VlmcError(f"the template {what}: {reason}", at=_place(self._at, line))


def _place(at: str, line: int | None) -> str:
    return at if line is None else f"{at}: line {line}"
