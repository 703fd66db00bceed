"""spikee: a seed's files (documents x jailbreaks x instructions), or a data set built of them.

Success is told by the canary alone: an instruction whose judge is a pattern or a model has no
witness.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from causal_core.data.benchmarks.cases import (
    POSITIONS,
    Attack,
    Case,
    Dropped,
    placed,
    position_of,
    some_of,
)
from causal_core.data.benchmarks.files import Content, Record, text_of
from causal_core.data.schema import DataError

WANTED = (
    "base_user_inputs.jsonl (document), jailbreaks.jsonl (text with <INSTRUCTION>) and "
    "instructions.jsonl (instruction, judge_args), or a built data set (content, payload)"
)
_SLOT = "<INSTRUCTION>"
_SUMMARISE = "Summarise the document."
_CANARY = "canary"


def read(files: Sequence[Content], dropped: Dropped, most: int | None) -> Iterator[Case]:
    """One case a document with its combinations, or one a row of a built data set."""
    documents: list[Record] = []
    jailbreaks: list[Record] = []
    instructions: list[Record] = []
    for file in files:
        if file.has("payload") and (file.has("content") or file.has("text")):
            yield from _built(file, dropped)
        elif file.has("document"):
            documents += file.records()
        elif file.has("instruction"):
            instructions += file.records()
        elif file.has("text"):
            jailbreaks += file.records()
        else:
            raise file.wrong_layout("spikee", WANTED)
    parts = {"documents": documents, "jailbreaks": jailbreaks, "instructions": instructions}
    if any(parts.values()):
        for name, found in parts.items():
            if not found:
                reason = f"no file of {name} was given: a seed has {WANTED}"
                raise DataError.in_file(files[0].name, reason)
        yield from _products(documents, jailbreaks, instructions, dropped, most)


def _products(
    documents: Sequence[Record],
    jailbreaks: Sequence[Record],
    instructions: Sequence[Record],
    dropped: Dropped,
    most: int | None,
) -> Iterator[Case]:
    wrapped = []
    for jailbreak in jailbreaks:
        text = text_of(jailbreak, "text")
        if text is None or _SLOT not in text:
            dropped.add(f"jailbreaks without {_SLOT}")
            continue
        wrapped += [(jailbreak, text, instruction) for instruction in instructions]
    combinations = [(position, part) for position in POSITIONS for part in wrapped]
    for number, record in enumerate(documents):
        document = text_of(record, "document")
        if document is None:
            dropped.add("without a document")
            continue
        slot = text_of(record, "placeholder")
        clean = document if slot is None else document.replace(slot, "")
        attacks = []
        for position, (jailbreak, wrapper, instruction) in some_of(combinations, number, most):
            asked = text_of(instruction, "instruction")
            if asked is None:
                continue
            text = wrapper.replace(_SLOT, asked)
            fixed = slot is not None and slot in document
            injected = document.replace(str(slot), text) if fixed else placed(clean, text, position)
            attacks.append(
                Attack(
                    injected,
                    text_of(jailbreak, "jailbreak_type") or "unknown",
                    _witness(instruction),
                    "fixed" if fixed else position,
                    technique=text_of(instruction, "instruction_type"),
                    wording=f"spikee/{text_of(jailbreak, 'id') or wrapper[:40]}",
                )
            )
        question = text_of(record, "question")
        answer = text_of(record, "ideal_answer" if question else "ideal_summary")
        yield Case(question or _SUMMARISE, clean, tuple(attacks), answer=answer)


def _built(file: Content, dropped: Dropped) -> Iterator[Case]:
    for record in file.records():
        content, payload = text_of(record, "content", "text"), text_of(record, "payload")
        if content is None or payload is None:
            dropped.add("without a content or a payload")
            continue
        if payload not in content:
            dropped.add("whose payload is not in the content as it is")
            continue
        clean = content.replace(payload, "").strip()
        if not clean:
            dropped.add("that are nothing but their payload, without a document around it")
            continue
        attack = Attack(
            content,
            text_of(record, "jailbreak_type") or "unknown",
            _witness(record),
            text_of(record, "position") or position_of(clean, content),
            technique=text_of(record, "instruction_type"),
        )
        yield Case(
            text_of(record, "system_message") or "Do what the user asks.",
            clean,
            (attack,),
            answer=text_of(record, "ideal_answer", "ideal_summary"),
        )


def _witness(record: Record) -> str | None:
    judge = text_of(record, "judge_name") or _CANARY
    return text_of(record, "judge_args", _CANARY) if judge == _CANARY else None
