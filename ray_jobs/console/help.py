"""Help in whole sentences: a list of commands is not cut at the edge of the terminal."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

_LONGEST = 10_000  # characters: no sentence is as long


class WholeLines(TyperGroup):
    """A group of commands whose list goes on in the next line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, command.get_short_help_str(_LONGEST))
            for name, command in found
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
