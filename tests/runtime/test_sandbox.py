"""Templates that mean harm: no way out of the sandbox, and an end to every loop and every allocation."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tolerances
from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.errors import TemplateError

USER: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ (''|attr('__class__')).mro() }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ strftime_now.__code__.co_code }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self._TemplateReference__context.environment }}{{ self._TemplateReference__context.environment.x }}",
    "{{ '{0.__class__.__mro__}'.format(1).x.y }}",
    "{{ ('{0.__class__}' | attr('format'))(1).x.y }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages | map(attribute='__class__') | map(attribute='__mro__') | list }}",
    "{{ dict.__call__.__globals__ }}",
    "{{ (messages | list).sort.__self__.x }}",
    "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}",
    "{{ lipsum.__globals__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ environment.meter }}{{ environment.meter.used }}",
    "{{ 'a'.translate({97: 'b'}) }}",
]


def growing(value: str, start: str = "'aa'") -> str:
    """A template that computes n.s from n.s a hundred times."""
    return f"{{% set n = namespace(s={start}) %}}{{% for i in range(100) %}}{{% set n.s = {value} %}}{{% endfor %}}"


BOMBS = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "multiply": "{{ 'a' * 10**9 }}",
    "multiply a list": "{{ [1] * 10**9 }}",
    "doubling *": growing("n.s * 2"),
    "doubling +": growing("n.s + n.s"),
    "doubling ~": growing("n.s ~ n.s"),
    "doubling lists": growing("[n.s, n.s]"),
    "doubling dicts": growing("{'a': n.s, 'b': n.s}"),
    "doubling tuples": growing("(n.s, n.s)"),
    "doubling views": growing("{'a': n.s.items(), 'b': n.s.items()}", "{'a': 1}"),
    "replace": growing("n.s.replace('a', n.s)"),
    "replace filter": growing("n.s | replace('a', n.s)"),
    "escape": "{{ ('&' * 16000000) | escape ~ 'x' }}",
    "powers": growing("n.s * n.s", "3"),
    "power": "{{ 10 ** 1000000000 }}",
    "center": "{{ 'a' | center(10**9) }}",
    "center method": "{{ 'a'.center(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent, argument": "{{ '%*d' % (1000000000, 1) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format method": "{{ '{:1000000000}'.format(1) }}",
    "format, nested width": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "format, many": "{{ ('{0:>99999}' * 9999).format('x') }}",
    "join": "{{ range(100000) | join('x' * 1000000) }}",
    "join method": "{{ ('x' * 1000000).join(range(100000) | map('string')) }}",
    "indent": "{{ ('\\n' * 100000) | indent(100000, true, true) }}",
    "json indent": "{{ [[1]] | tojson(indent=1000000000) }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "sum of lists": "{% set a = [1] * 10000 %}{{ ([a] * 1000) | sum(start=[]) }}",
    "split": "{{ ('a,' * 8000000).split(',') | length }}",
    "map": "{{ range(100000) | map('center', 100000) | list }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list }}",
    "capture": "{% set x %}{% for i in range(100000) %}" + "a" * 10000 + "{% endfor %}{% endset %}",
    "macro": "{% macro f(n) %}"
    + "a" * 1000
    + "{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{% set x = f(40) %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "many values": "".join(f"{{% set a{i} = 'a' * 16000000 %}}" for i in range(500)),
    "many slices": "{% set a = 'a' * 16000000 %}" + "".join(f"{{% set a{i} = a[1:] %}}" for i in range(500)),
    "output": "{% for i in range(10000) %}" + "a" * 10000 + "{% endfor %}",
    "backward search": "{{ ('a' * 8000000).rfind('a' * 4000000 ~ 'b') }}",
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "macro calls": "{% macro f(n) %}{% if n %}{% set x = f(n-1) + f(n-1) %}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for x in [1] recursive %}{% set a = loop([1]) %}{% endfor %}",
}


class TestHostile:
    @pytest.mark.parametrize("source", ESCAPES)
    def test_escapes(self, source: str) -> None:
        messages = [dict(USER[0])]
        try:
            text = ChatTemplate(source).render(messages)
        except TemplateError:
            text = ""
        assert "class" not in text
        assert "meter" not in text
        assert "function" not in text
        assert messages == [{"role": "user", "content": "Hello"}]

    @pytest.mark.parametrize("name", list(BOMBS))
    def test_bombs(self, name: str) -> None:
        tracemalloc.start()
        started = time.perf_counter()
        try:
            with pytest.raises(TemplateError):
                ChatTemplate(BOMBS[name], time_limit_s=0.5).render(USER)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert time.perf_counter() - started < tolerances.BOMB_SECONDS
        assert peak < tolerances.BOMB_BYTES

    @pytest.mark.parametrize(
        "source",
        [
            "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}",
            "{% for a in b %}" * 300 + "{% endfor %}" * 300,
            "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
            "{{ " + "-" * 20_000 + "1 }}",
            "{{ 'a' | center(1000000000) }}",
            "a" * (1 << 19),
        ],
        ids=["parentheses", "loops", "conditions", "signs", "constant", "long"],
    )
    def test_templates_that_choke_compilers(self, source: str) -> None:
        with pytest.raises(TemplateError):
            ChatTemplate(source, time_limit_s=0.5).render(USER)

    @given(st.text(alphabet="{}%-|()[]'\"~+*. abmnfortseijxl_0159\n", max_size=60))
    @settings(max_examples=300, deadline=None)
    def test_random_templates(self, source: str) -> None:
        try:
            ChatTemplate(source, time_limit_s=0.5).render(USER)
        except TemplateError as error:
            check_message(error)


def check_message(error: TemplateError) -> None:
    assert len(str(error).encode()) < 4000
