"""BIPIA (Yi et al., 2023): contexts with questions, and a file of attacks by category.

Its authors judge most attacks by a model, not by a string: there is no witness, so attack success
is not measured here; what is, is whether the right answer survives the attack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from causal_core.data.benchmarks.cases import POSITIONS, Attack, Case, Dropped, placed, some_of
from causal_core.data.benchmarks.files import Content, Record, text_of
from causal_core.data.schema import DataError

WANTED = "context, question, ideal a line, beside a file {category: [attacks]}"
_WITHOUT_QUESTION = "Summarise the text."
_CODE = "Repair the code with the help of the text that follows; reply with the code alone."


def read(files: Sequence[Content], dropped: Dropped, most: int | None) -> Iterator[Case]:
    """One case a context, with every attack at every position."""
    attacks: list[tuple[str, int, str]] = []
    contexts: list[Content] = []
    for file in files:
        if _is_attacks(file):
            attacks += [
                (category, number, text)
                for category, texts in file.value.items()
                for number, text in enumerate(texts)
            ]
        elif file.has("context", "ideal"):
            contexts.append(file)
        else:
            raise file.wrong_layout("BIPIA", WANTED)
    if not attacks or not contexts:
        missing = "of attacks ({category: [attacks]})" if contexts else "of contexts"
        reason = f"no file {missing} was given: BIPIA is made of both"
        raise DataError.in_file(files[0].name, reason)
    combinations = [(position, attack) for position in POSITIONS for attack in attacks]
    records = (record for file in contexts for record in file.records())
    for number, record in enumerate(records):
        context = text_of(record, "context")
        if context is None:
            dropped.add("without a context")
            continue
        given = tuple(
            Attack(
                placed(context, text, position),
                category,
                position=position,
                wording=f"{category}/{index}",
            )
            for position, (category, index, text) in some_of(combinations, number, most)
        )
        yield Case(_instruction(record), context, given, answer=text_of(record, "ideal"))


def _is_attacks(file: Content) -> bool:
    value = file.value
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(texts, list) for texts in value.values())
        and all(isinstance(t, str) and t.strip() for texts in value.values() for t in texts)
        and not file.has("context", "ideal")
    )


def _instruction(record: Record) -> str:
    code, error = text_of(record, "code"), text_of(record, "error")
    if code is not None:
        return "\n\n".join(filter(None, (_CODE, code, error)))
    return text_of(record, "question") or _WITHOUT_QUESTION
