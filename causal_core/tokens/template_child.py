"""Renders a chat template in a process of its own, within limits that the kernel keeps.

    python -P template_child.py < {"source": ..., "variables": {...}, "chats": [[messages, open]]}

Run as a file, and without anything of this package or of transformers, whose import takes ten
times as long. The environment is of the kind that transformers makes. Its last line says what was
found: one of `WITHIN`, `TOO_MUCH_MEMORY`, `TOO_MUCH_TEXT`; whoever is killed says nothing. What a
template refuses by itself is nothing of this.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

WITHIN, TOO_MUCH_MEMORY, TOO_MUCH_TEXT = "within", "memory", "text"
MOST_SECONDS = 5  # of a core; templates take milliseconds
MOST_BYTES = 2**30
MOST_CHARACTERS = 2**20  # of a rendered conversation; those that are rendered have some thousand


def _limit() -> None:
    """Lowers the limits of this process, as far as the system has them and they are not lower."""
    try:
        import resource
    except ImportError:  # no POSIX system
        return
    wanted = {
        resource.RLIMIT_AS: MOST_BYTES,
        resource.RLIMIT_CPU: MOST_SECONDS,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in wanted.items():
        soft, hard = resource.getrlimit(kind)
        if soft == resource.RLIM_INFINITY or soft > limit:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (limit, hard))


def _environment() -> Any:
    from jinja2 import ext, nodes
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """`{% generation %}`, which marks the model's words, without the mark."""

        tags = {"generation"}  # noqa: RUF012 - as its base declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: form
    return environment


def _as_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _constants(environment: Any, source: str) -> None:
    """Computes what the compiler will compute, which takes a MemoryError for no constant."""
    from jinja2 import nodes

    context = nodes.EvalContext(environment, None)
    for node in environment.parse(source).find_all(nodes.Expr):
        try:
            node.as_const(context)
        except nodes.Impossible as none:
            if isinstance(none.__cause__ or none.__context__, MemoryError):
                raise MemoryError from none


def _found(source: str, variables: dict[str, Any], chats: list[Any]) -> str:
    environment = _environment()
    try:
        _constants(environment, source)
        template = environment.from_string(source)
    except MemoryError:
        return TOO_MUCH_MEMORY
    except Exception:  # noqa: BLE001 - not to be parsed: whoever renders it in earnest says so
        return WITHIN
    for messages, is_open in chats:
        told = {"tools": None, "documents": None, "add_generation_prompt": is_open}
        text = ""
        try:
            text = template.render(**{**variables, **told, "messages": messages})
        except MemoryError:
            return TOO_MUCH_MEMORY
        except Exception:  # noqa: BLE001, S110 - a template may raise anything to refuse a turn
            pass
        if len(text) > MOST_CHARACTERS:
            return TOO_MUCH_TEXT
    return WITHIN


if __name__ == "__main__":
    _limit()
    print(_found(**json.load(sys.stdin)))
