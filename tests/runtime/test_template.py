import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chat_checkpoints import CHATML, LLAVA, MISTRAL, VICUNA
from vlmc.errors import VlmcError
from vlmc.runtime.template import ChatTemplate

CHAT = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Qué\n é isto? "}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A ball."}]},
    {"role": "user", "content": [{"type": "text", "text": "{{ bos_token }}{% if %}"}]},
]
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}

# Each uses something of transformers' environment.
SNIPPETS = {
    "blocks": "{% for m in messages %}\n    {% if m.role == 'user' %}\nU\n"
    "    {% endif %}\n{% endfor %}\n",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "tojson options": "{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true, ensure_ascii=true) }}",
    "separators": "{{ [1, 2] | tojson(separators=(',', ':')) }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": "a {% generation %}b {{ messages[0].role }}\n{% endgeneration %} c",
    "namespace": "{% set n = namespace(x=1, self=2) %}{% for m in messages %}"
    "{% set n.x = n.x * 2 %}{% endfor %}{{ n.x }}{{ n.self }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys([1]) }}",
    "arguments": "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}"
    "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ messages | length }}",
    "undefined": "[{{ nothing }}][{{ messages[0].nothing }}][{{ messages[0]['x'] }}]",
    "range": "{% for i in range(3) %}{{ i }}{% endfor %}{{ range(2) | list }}",
    "strings": "{{ messages[0].content.split('<')[0] ~ 'x' * 3 + '%s-%5d' % ('a', 3) }}",
    "numbers": "{{ 2 ** 10 }} {{ 7 % 4 }} {{ 3 + 4 }} {{ [1] * 2 + [3] }}",
    "filters": "{{ 'x' | center(9) }}|{{ 'x\ny' | indent }}|{{ 'x\ny' | indent(2, true) }}|"
    "{{ 'x\ny' | indent(width='> ', first=true) }}|{{ 'a' ~ 1 ~ none ~ ['b'] }}|{{ 'é' | upper }}",
    "autoescape": "{{ '<b>' }}{{ '<b>' | e }}",
    "last newline": "x\n",
    "crlf": "a\r\n{% if true %}\r\nb{% endif %}\r\n",
    "macro": "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages[0].role) }}",
    "llava": LLAVA,
    "vicuna": VICUNA,
    "chatml": CHATML,
}


def theirs(source, messages=CHAT):
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        conversations=[messages], chat_template=source, add_generation_prompt=True, **NAMES
    )
    return rendered[0]


@pytest.mark.parametrize("name", SNIPPETS)
def test_rendering_is_transformers(name):
    assert ChatTemplate(SNIPPETS[name]).render(CHAT, NAMES) == theirs(SNIPPETS[name])


WORDS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
PART = st.one_of(
    st.just({"type": "image"}), st.builds(lambda text: {"type": "text", "text": text}, WORDS)
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["system", "user", "assistant"]),
                "content": st.lists(PART, max_size=3),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_rendering_any_chat_is_transformers(chat):
    for source in (LLAVA, VICUNA, CHATML):
        assert ChatTemplate(source).render(chat, NAMES) == theirs(source, chat)


def test_the_clock(monkeypatch):
    from datetime import datetime

    import vlmc.runtime.template as module

    class Clock:
        @staticmethod
        def now():
            return datetime(2024, 7, 26)

    monkeypatch.setattr(module, "datetime", Clock)
    rendered = ChatTemplate("{{ strftime_now('%d %b %Y') }}").render(CHAT, {})
    assert rendered == "26 Jul 2024"


def test_a_refusal_is_told():
    with pytest.raises(VlmcError, match="cannot render these messages: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(CHAT, {})
    with pytest.raises(VlmcError, match="must alternate"):
        ChatTemplate(MISTRAL).render(CHAT[1:] + CHAT[1:2], NAMES)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ x", "{% nope %}", "{{ x | nope }}", "{% endfor %}"]
)
def test_templates_that_do_not_compile(source):
    with pytest.raises(
        VlmcError, match=r"processor/x\.jinja: line 1: the template does not compile"
    ):
        ChatTemplate(source, at="processor/x.jinja")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].role.nothing.more }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ messages[9].role }}",
        "{{ nothing() }}",
        "{{ {}['a'].b }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x'.index('y') }}",
    ],
)
def test_templates_that_fail(source):
    with pytest.raises(VlmcError, match="the template cannot render these messages"):
        ChatTemplate(source).render(CHAT, {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'].__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ '{0.__class__.__base__}'.format('') }}",
        "{{ '{0.__class__.__base__}'.format_map({'0': ''}) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ namespace(__x=1) }}",
        "{{ namespace({'__x': 1}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_the_sandbox_holds(source):
    template = ChatTemplate(source)
    with pytest.raises(VlmcError, match="the template cannot render these messages"):
        template.render(CHAT, {})
    assert CHAT[0]["role"] == "system"
    assert len(CHAT) == 4


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception.__globals__ }}",
        "{{ dict.__class__ }}",
        "{{ namespace.__init__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ self.__init__ }}",
    ],
)
def test_the_sandbox_shows_nothing(source):
    assert ChatTemplate(source).render(CHAT, {}) == theirs(source) == ""


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
        "{% endfor %}{% endmacro %}{{ f() }}",
        "{{ 'x' * 10000000000 }}",
        "{{ 10000000000 * 'x' }}",
        "{{ [0] * 10000000000 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%.1000000000f' % 1 }}",
        "{% set n = namespace(x='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}"
        "{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{{ 'x'.ljust(10000000000) }}",
        "{{ 'x' | center(10000000000) }}",
        "{{ 'x\\nx' | indent(10000000000) }}",
        "{{ lipsum(1000000000) }}",
        "{% set n = namespace(x='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}"
        "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}"
        "{% set n.x = n.x.replace('x', 'xx') %}{% endfor %}{{ n.x }}",
    ],
)
def test_work_is_bounded(source):
    started = time.monotonic()
    with pytest.raises(VlmcError, match="the template cannot render these messages"):
        ChatTemplate(source).render(CHAT, {})
    assert time.monotonic() - started < 5


def test_time_is_bounded(monkeypatch):
    import vlmc.runtime.template as module

    monkeypatch.setattr(module, "MAX_SECONDS", 0.2)
    digits = "'0123456789'"
    loops = "".join(f"{{% for {name} in {digits} %}}" for name in "abcdefgh")
    for inner in ("{{ a }}", "{% set x = 1 + 1 %}", "{% set x = a.upper() %}"):
        with pytest.raises(VlmcError, match="longer than"):
            ChatTemplate(loops + inner + "{% endfor %}" * 8).render(CHAT, {})


def test_bounds_are_of_one_rendering():
    template = ChatTemplate("{% for i in range(60000) %}{% endfor %}x")
    for _ in range(30):
        assert template.render(CHAT, {}) == "x"


def test_literals_are_what_a_template_writes():
    literals = ChatTemplate("<a>{{ '<b>' + messages[0].role + '<c>' }}{# <d> #}").literals()
    assert literals.split("\0")[0] == "<a>"
    assert {"<a>", "<b>", "<c>"} <= set(literals.split("\0"))
    assert "<d>" not in literals
