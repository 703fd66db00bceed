"""Text for the terminal that is only text: no name in it is markup, none drives the terminal.

Test sets, paths, runs, models and splits are named by users and by files of unknown origin. rich
reads `[/]` in a string as markup and fails on it, and passes escape codes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from causal_core.credentials import message_without_credentials
from causal_core.visible_text import visible

if TYPE_CHECKING:
    from rich.text import Text


def plain(text: object, style: str = "", *, lines: bool = False) -> Text:
    """A value as rich text: shown as it is, unprintable characters escaped.

    Args:
        lines: It may have several; elsewhere a line break is escaped, too: what a name holds after
            one would pass for something that this program says.
    """
    from rich.text import Text  # late, so that --help is quick

    shown = visible(str(text))
    return Text(shown if lines else shown.replace("\n", "\\n"), style=style)


def printable(text: object) -> str:
    """The same for `print` and for errors, which may quote a location."""
    return message_without_credentials(visible(str(text)))
