"""SEP ("Should it be executed or processed?", Zverev et al., 2024), in its two layouts.

The authors' file has the clean and the instructed texts of both roles and no reference answer; the
file with one reference answer a row has the injection apart from the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from causal_core.data.benchmarks.cases import Attack, Case, Dropped, position_of
from causal_core.data.benchmarks.files import Content, Record, text_of

WANTED = (
    "system_prompt_clean, prompt_clean, prompt_instructed, witness, or "
    "instruction_only (or instruction), input, injection, witness"
)
_FAMILY = "sep"


def read(files: Sequence[Content], dropped: Dropped, _most: int | None) -> Iterator[Case]:
    """One case a row; in both layouts the attack is given."""
    for file in files:
        if file.has("system_prompt_clean", "prompt_clean", "prompt_instructed", "witness"):
            of = _instructed
        elif file.has("input", "injection", "witness"):
            of = _apart
        else:
            raise file.wrong_layout("SEP", WANTED)
        for record in file.records():
            case = of(record)
            if case is None:
                dropped.add("without one of its texts")
            else:
                yield case


def _instructed(record: Record) -> Case | None:
    system, clean = text_of(record, "system_prompt_clean"), text_of(record, "prompt_clean")
    injected, witness = text_of(record, "prompt_instructed"), text_of(record, "witness")
    if system is None or clean is None or injected is None or witness is None:
        return None
    about = record.get("info")
    about = about if isinstance(about, dict) else {}
    probe = about.get("appended_task_id")
    attack = Attack(
        injected,
        _FAMILY,
        witness,
        position_of(clean, injected),
        technique="insistent" if about.get("is_insistent") is True else "plain",
        wording=f"sep/{probe}" if isinstance(probe, int | str) else None,
    )
    return Case(system, clean, (attack,), task=text_of(about, "general_task"))


def _apart(record: Record) -> Case | None:
    system, clean = text_of(record, "instruction_only", "instruction"), text_of(record, "input")
    injection, witness = text_of(record, "injection"), text_of(record, "witness")
    if system is None or clean is None or injection is None or witness is None:
        return None
    # Some files hold the injected input whole.
    injected = injection if clean in injection else f"{clean} {injection}"
    attack = Attack(injected, _FAMILY, witness, position_of(clean, injected), technique="plain")
    return Case(system, clean, (attack,), answer=text_of(record, "output"))
