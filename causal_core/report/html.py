"""Self-contained HTML pages: one file, no network, and no text that could be taken for markup.

Training text is hostile by nature, so every value that a template prints is first made visible
(hidden characters written out) and then escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from causal_core.visible_text import visible

_HERE = "causal_core.report"  # whose folder `templates` other pages may include from


def render(template: str, context: Mapping[str, Any], package: str = _HERE) -> str:
    """Fills a template of `package`; it may include those of this package."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(name) for name in dict.fromkeys((package, _HERE))]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context)


def _finalize(value: Any) -> Any:
    """Runs on every printed value before it is escaped; what is already markup passes."""
    if hasattr(value, "__html__"):
        return value
    text = str(value)
    return text if text.isascii() and text.isprintable() else visible(text)
