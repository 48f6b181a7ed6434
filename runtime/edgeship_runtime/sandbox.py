"""The Jinja environment of chat templates: what transformers gives them, and limits that transformers does not set.

A chat template is a program that came with an artifact. Jinja's sandbox keeps it from Python's internals; the limits
here keep it from the machine's time and memory. They need no thread, signal or trace function, so that they work in
any thread and on any platform:

- **size**: no value heavier than MAX_VALUE ever exists. Whatever can make one (operators, filters, method calls,
  literals, slices, `~`) is priced *before* it runs where the price can be known, and weighed afterwards.
- **budget**: everything a render makes is charged, kept or not; more than BUDGET in all ends it. What the
  conversation holds costs nothing however often a list of it is made.
- **time**: every loop turn, call, filter and operator looks at the clock. One built-in operation cannot be
  interrupted, but no operation has more than MAX_VALUE to work on.

Loop turns, literals, slices and `~` are seen by rewriting the parsed template: they become calls of `Sandbox.tick`,
`.kept` and `.joined`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes as nodes
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from edgeship_runtime.meter import MAX_VALUE, LimitError, Meter, filter_price, method_price, operator_price

# Slow in the square of their input inside one call, or random: no chat template has a use for them.
_NO_FILTERS = ("urlize", "striptags", "pprint", "wordwrap", "xmlattr")
_NO_METHODS = frozenset(("translate", "maketrans", "to_bytes", "from_bytes", "expandtabs"))


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment transformers 5 compiles chat templates in, with a `meter` on everything that makes values.

    One render at a time: `meter` belongs to the render that runs.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        self.meter = Meter()
        extensions = [_Generation, jinja2.ext.loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self._shown)
        self.filters["tojson"] = self._tojson
        self.filters = {
            name: self._metered(name, function) for name, function in self.filters.items() if name not in _NO_FILTERS
        }
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        del self.globals["lipsum"]

    def compile_template(self, source: str) -> jinja2.Template:
        """Parse, rewrite and compile; raises jinja2.TemplateError, RecursionError, SyntaxError, MemoryError."""
        tree = self.parse(source)
        _Rewriter(self).visit(tree)
        return self.from_string(tree)

    def _shown(self, value: Any) -> Any:
        """What `{{ }}` is about to turn into text, all it holds included."""
        self.meter.charge(self.meter.weigh(value))
        return value

    def tick(self, text: int) -> str:
        """A turn of a loop or a macro whose body holds `text` characters of plain text."""
        self.meter.charge(text)
        return ""

    def kept(self, value: Any) -> Any:
        """A list, tuple, dict or slice that the template just made."""
        return self.meter.keep(value)

    def joined(self, *parts: Any) -> str:
        """The operator `~`."""
        self.meter.charge(sum(map(self.meter.weigh, parts)))
        return "".join(map(str, parts))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Jinja's rules, less the few methods of built-in types whose results cannot be priced."""
        return attr not in _NO_METHODS and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator that can make large values out of small ones."""
        self.meter.charge(operator_price(self.meter, operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 -- as Jinja has it
        """A call in the template: its own macros, the functions given to it, methods of the values it holds."""
        bound = getattr(__obj, "__self__", None)
        if bound is __self:
            return __obj(*args)
        meter = __self.meter
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)  # str.format comes wrapped
        if isinstance(owner, str | bytes):
            args = tuple(map(meter.read, args)) if __obj.__name__ == "join" else args
            meter.charge(method_price(meter, __obj.__name__, owner, args, kwargs))
        return meter.keep(super().call(__context, __obj, *args, **kwargs))

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        # What Jinja passes first to filters that ask for it (environment, context) is not the template's value.
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            meter, values = self.meter, list(args)
            if name in ("join", "list") and len(values) > first:
                values[first] = meter.read(values[first])
            meter.charge(filter_price(meter, name, values[first:], kwargs))
            return meter.keep(function(*values, **kwargs))

        return metered

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """Jinja's own filter escapes HTML, and knows none of these arguments."""
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        if indent is None:
            return encoder.encode(value)
        size = len(indent) if isinstance(indent, str) else int(indent)
        if size > 100:
            raise LimitError(f"it indents JSON by {size}")
        # Deep values grow with the square of their depth when indented: pay piece by piece.
        return "".join(map(self.meter.keep, encoder.iterencode(value)))


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


class _Dict:
    """The `dict` of templates: a function and not a type, so that no attribute leads anywhere."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without underscore names; it prints flat, because namespaces can hold each other."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        members = dict(*rest, **kwargs)
        for name in members:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, members)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no name that begins with an underscore: {name[:40]}")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; what it encloses is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 -- as Jinja declares it

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_enclosed"), [], [], body).set_lineno(line)

    def _enclosed(self, caller: Any) -> Any:
        return caller()


class _Rewriter(jinja2.visitor.NodeTransformer):
    """Puts calls of the sandbox where Jinja asks nobody: loop turns, macros, literals, slices and `~`."""

    def __init__(self, environment: Sandbox) -> None:
        self._environment = environment

    def _call(self, method: str, arguments: list[nodes.Expr], at: nodes.Node) -> nodes.Call:
        call = nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)
        return call.set_lineno(at.lineno).set_environment(self._environment)  # type: ignore[return-value]

    def _ticking(self, node: Any) -> Any:
        size = sum(map(_plain_text, node.body))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("tick", [nodes.Const(size)], node)).set_lineno(node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_Block = _ticking  # noqa: N815 -- names that Jinja looks up

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._call("joined", node.nodes, node)

    def _kept(self, node: Any) -> Any:
        self.generic_visit(node)
        stored = getattr(node, "ctx", "load") != "load"  # {% set a, b = ... %}
        return node if stored else self._call("kept", [node], node)

    visit_List = visit_Tuple = visit_Dict = _kept  # noqa: N815

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        return self._kept(node) if isinstance(node.arg, nodes.Slice) else self.generic_visit(node)


def _plain_text(node: nodes.Node) -> int:
    """Characters of template text that one pass over `node` can output; inner loops and macros count their own."""
    if isinstance(node, nodes.TemplateData):
        return len(node.data)
    if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block):
        return 0
    return sum(map(_plain_text, node.iter_child_nodes()))


def metered_pieces(template: jinja2.Template, meter: Meter, variables: Mapping[str, Any]) -> Iterator[str]:
    """The text of a render piece by piece, ended by LimitError when there is more of it than MAX_VALUE."""
    size = 0
    for piece in template.generate(**variables):
        size += len(piece)
        meter.charge(size if size > MAX_VALUE else len(piece))
        yield piece
