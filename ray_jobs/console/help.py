"""The group of all commands: its help is in whole sentences, and it takes no empty argument."""

from __future__ import annotations

import itertools
from typing import Any

from typer.core import TyperGroup

from causal_core.visible_text import shown

# Options whose text may be empty. Elsewhere nothing is meant by it: as a path it would be the
# working directory, so that an unset variable of the shell had files written there.
_MAY_BE_EMPTY = ("--system", "--input", "--context")
_LONGEST = 10_000  # characters: no sentence is as long


class WholeLines(TyperGroup):
    """A group of commands whose list goes on in the next line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuses an empty word, as a usage error."""
        for before, word in itertools.pairwise(["", *args]):
            option, equals, value = (
                word.partition("=") if word.startswith("--") else (before, "", word)
            )
            if not value.strip() and (equals or not word.strip()) and option not in _MAY_BE_EMPTY:
                after = f"after {shown(before)}" if before else "at the beginning"
                ctx.fail(f"an empty argument ({after}): is a variable of the shell not set?")
        return list(super().parse_args(ctx, args))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, command.get_short_help_str(_LONGEST))
            for name, command in found
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
