"""The kinds of work that rows are made of: `TASKS` is their one list."""

from causal_core.generator.tasks.documents import DOCUMENTS
from causal_core.generator.tasks.records import RECORDS
from causal_core.generator.tasks.rewriting import REWRITING
from causal_core.generator.tasks.short import SHORT
from causal_core.generator.tasks.task import FORMATS, GUARDS, Task, instruction

TASKS: tuple[Task, ...] = (*SHORT, *DOCUMENTS, *RECORDS, *REWRITING)

__all__ = ["FORMATS", "GUARDS", "TASKS", "Task", "instruction"]
