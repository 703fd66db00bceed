"""Rows of other kinds of training: recognised by their keys, named, and made into rows of ours.

A plain row of (system, input, answer) comes of a chat or an instruction; a triplet of a preference
pair, whose chosen answer is the safe one and whose rejected one is what the attack wants.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from causal_core.data.schema import ALIASES, CANONICAL_NAME, INJECTIONS
from causal_core.visible_text import quoted

Raw = Mapping[str, Any]


class NoRowError(Exception):
    """Why a row of another layout cannot become one of ours, in words."""


@dataclass(frozen=True)
class Layout:
    """A kind of row that others write."""

    name: str
    keys: tuple[str, ...]  # every such row has them ...
    also: tuple[str, ...]  # ... and may have these; other keys stay as they are
    becomes: str
    made: Callable[[Raw], dict[str, Any]]

    def converted(self, raw: Raw) -> dict[str, Any]:
        """The row in our fields.

        Raises:
            NoRowError: it has not all that one needs.
        """
        used = {*self.keys, *self.also}
        return {**{k: v for k, v in raw.items() if k not in used}, **self.made(raw)}


def layout_of(keys: Collection[str]) -> Layout | None:
    """The layout of a row with these keys; None where it is one of ours, or of a kind unknown."""
    ours = {CANONICAL_NAME[key] for key in keys if key in CANONICAL_NAME}
    if {"benign_output", "injection_output", INJECTIONS} & ours:
        return None
    return next((layout for layout in LAYOUTS if all(key in keys for key in layout.keys)), None)


def _plain(system: Any, question: Any, answer: Any) -> dict[str, Any]:
    return {
        "system_instruction": system,
        "benign_input": question,
        "benign_output": answer,
        INJECTIONS: [],
    }


# What the authors of turns are called.
_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant",
}  # fmt: skip
_TOOLS = ("tool", "function", "function_call", "function_response", "observation", "tool_call",
          "tool_response")  # fmt: skip


def _turns(value: Any) -> Iterator[tuple[str, str]]:
    """Role and text of each turn of a conversation, in either of the two spellings."""
    if not isinstance(value, list):
        raise NoRowError("its turns are no list")
    for turn in value:
        if not isinstance(turn, Mapping):
            raise NoRowError("a turn is no object with a role and a text")
        role = turn.get("role", turn.get("from"))
        if role in _TOOLS or turn.get("tool_calls") or turn.get("function_call"):
            raise NoRowError(
                "a chat that uses tools, where a row has one input and one answer: give what a "
                "tool returned as the input of a row of its own, with the system prompt"
            )
        if not isinstance(role, str) or role not in _ROLES:
            raise NoRowError(f"a turn has the role {quoted(role)}; known: {', '.join(_ROLES)}")
        yield _ROLES[role], _text(turn.get("content", turn.get("value")))


def _text(content: Any) -> str:
    """The text of a turn, which may be cut in parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        if parts and len(parts) == len(content) and all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    if not isinstance(content, str):
        raise NoRowError("a turn has no text, or not text alone")
    return content


def _given(raw: Raw, field: str, *others: str) -> Any:
    """A field by any of its spellings, or by names that only such rows have for it."""
    names = (field, *ALIASES.get(field, ()), *others)
    return next((raw[name] for name in names if raw.get(name) is not None), None)


def _single_turn(raw: Raw, turns: list[tuple[str, str]]) -> tuple[Any, str, str | None]:
    """System prompt, question and answer of a conversation that has one of each; the answer is
    None where it ends with the question."""
    system = _given(raw, "system_instruction", "system")
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
    roles = [role for role, _ in turns]
    if roles.count("user") > 1:
        # As text before the last question they would be other tokens than those that are served.
        raise NoRowError(
            "a chat of several questions, where a row has one input: give each question that can "
            "be answered without the earlier turns a row of its own, with the system prompt"
        )
    if roles not in (["user"], ["user", "assistant"]):
        raise NoRowError("its turns after the system prompt are not one question and its answer")
    if system is None:
        raise NoRowError(
            "no system prompt, and what it says is what a model is to hold on to: name it with "
            "--map system_instruction=KEY"
        )
    return system, turns[0][1], turns[1][1] if len(turns) > 1 else None


def _from_messages(raw: Raw) -> dict[str, Any]:
    return _plain(*_single_turn(raw, list(_turns(raw["messages"]))))


def _from_conversations(raw: Raw) -> dict[str, Any]:
    return _plain(*_single_turn(raw, list(_turns(raw["conversations"]))))


def _from_instruction(raw: Raw) -> dict[str, Any]:
    question = raw["input"]
    if not isinstance(question, str) or not question.strip():
        raise NoRowError("an instruction without an input: there is nothing an attack could be in")
    parts = [part for part in (raw.get("system"), raw["instruction"]) if part]
    if not all(isinstance(part, str) for part in parts):
        raise NoRowError("its instruction is no text")
    return _plain("\n".join(parts), question, raw["output"])


def _from_pair(raw: Raw) -> dict[str, Any]:
    chosen, rejected = raw["chosen"], raw["rejected"]
    prompt = _given(raw, "injection_input", "prompt", "question")
    if any(_is_texts(answer) for answer in (chosen, rejected)):
        raise NoRowError("several chosen or rejected answers, where a row has one of each")
    if isinstance(chosen, list) and isinstance(rejected, list):
        # Conversations: the prompt is all but the last turn, or is given apart.
        before, last = _split_answer(chosen)
        chosen, rejected = last, _split_answer(rejected)[1]
        prompt = before if prompt is None or before else prompt
    system = _given(raw, "system_instruction", "system")
    if isinstance(prompt, list):
        turns = prompt if prompt and isinstance(prompt[0], tuple) else list(_turns(prompt))
        system, prompt, _ = _single_turn(raw, [*turns, ("assistant", "")])
    if system is None:
        raise NoRowError(
            "a pair without a system prompt of its own: name it with --map system_instruction=KEY"
        )
    clean = _given(raw, "benign_input", "clean_prompt", "clean_input")
    if clean is None:
        raise NoRowError(
            "a pair says what to answer under attack, and not what the input was before it: name "
            "it with --map benign_input=KEY; where no key has it, causal data inject makes attacks "
            "for clean rows of (system, input, answer)"
        )
    return {
        "system_instruction": system,
        "benign_input": clean,
        "benign_output": chosen,
        "injection_input": prompt,
        "injection_output": chosen,
        "attack_output": rejected,
    }


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _split_answer(conversation: list[Any]) -> tuple[list[tuple[str, str]], str]:
    *before, last = list(_turns(conversation)) or [("", "")]
    if last[0] != "assistant":
        raise NoRowError("a chosen or rejected conversation does not end with an answer")
    return before, last[1]


_OF_PAIR = (
    "prompt", "question", "system", "system_instruction", *ALIASES["system_instruction"],
    "benign_input", *ALIASES["benign_input"], "clean_prompt", "clean_input", "injection_input",
    *ALIASES["injection_input"],
)  # fmt: skip
_OF_CHAT = ("system", "system_instruction", *ALIASES["system_instruction"])
LAYOUTS = (
    Layout("preference pairs", ("chosen", "rejected"), _OF_PAIR, "triplets", _from_pair),
    Layout("chats (`messages`)", ("messages",), _OF_CHAT, "plain rows", _from_messages),
    Layout("chats (`conversations`, as ShareGPT has them)", ("conversations",), _OF_CHAT,
           "plain rows", _from_conversations),
    Layout("instructions (`instruction`, `input`, `output`)", ("instruction", "input", "output"),
           ("system",), "plain rows", _from_instruction),
)  # fmt: skip
