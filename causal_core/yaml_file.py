"""YAML that people write, as plain values, and nothing else that YAML can do.

Size, depth and what aliases stand for are bounded before anything is built; a key given twice is
an error; a date stays the text that was written.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from causal_core.errors import ConfigError
from causal_core.files import read_small
from causal_core.visible_text import quoted, shown

MAX_BYTES = 2**18
_MAX_DEPTH = 32
_MAX_NODES = 20_000  # with every alias counted as what it stands for
_TAGS = {f"tag:yaml.org,2002:{name}": name
         for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}  # fmt: skip
_KINDS = {ScalarNode: "scalar", SequenceNode: "list", MappingNode: "section"}
_NODE_OF: dict[str, type[Node]] = {"seq": SequenceNode, "map": MappingNode}


def read_yaml(path: str | Path) -> Any:
    """The plain values of a YAML file; None for an empty one.

    Raises:
        ConfigError: one line that names the file, the place in it and what is wrong there.
    """
    name = shown(str(path))
    try:
        text = read_small(Path(path), MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such config file") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        at = f"{error.reason} at byte {error.start + 1}"
        raise ConfigError(f"{name}: not UTF-8 text ({at}); save it as UTF-8") from None
    return parse_yaml(text, name)


def parse_yaml(text: str, source: str) -> Any:
    """The plain values of YAML text; `source` names it in the error (`ConfigError`)."""
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except _Problem as problem:
        raise ConfigError(f"{source}: {problem}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = quoted(f"{error.problem or error.context}", 200)[1:-1]
        raise ConfigError(f"{source}: not valid YAML: {at}{reason}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # no character, or none allowed
        reason = quoted(str(error).partition("\n")[0], 200)[1:-1]
        raise ConfigError(f"{source}: not valid YAML: {reason}") from None


class _Problem(Exception):
    """What is wrong with a node."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(f"line {node.start_mark.line + 1}: {reason}")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader within bounds; without dates, with text keys given once."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML declares it
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes: dict[int, int] = {}  # by node identity: nodes below it, aliases resolved

    def compose_node(self, parent: Node | None, index: Any) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            here = ScalarNode("", "", self.peek_event().start_mark)
            raise _Problem(here, f"nested more than {_MAX_DEPTH} levels deep")
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        assert node is not None  # there is an event to compose
        self._depth -= 1
        if not is_alias:
            self._nodes[id(node)] = self._count(node)
        return node

    def _count(self, node: Node) -> int:
        if not isinstance(node, _NODE_OF.get(_TAGS.get(node.tag, ""), ScalarNode)):
            raise _Problem(node, f"a {_KINDS[type(node)]} cannot be tagged {quoted(node.tag)}")
        if node.tag not in _TAGS:
            raise _Problem(
                node, f"the tag {quoted(node.tag)} is not for configs: write plain values"
            )
        if not isinstance(node, CollectionNode):
            return 1
        pairs = isinstance(node, MappingNode)
        below = [part for pair in node.value for part in pair] if pairs else node.value
        if any(id(child) not in self._nodes for child in below):
            raise _Problem(node, "an alias refers to what it is part of")
        count = 1 + sum(self._nodes[id(child)] for child in below)
        if count > _MAX_NODES:
            raise _Problem(
                node, f"stands for more than {_MAX_NODES:,} values once its aliases are resolved"
            )
        return count

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        before: dict[str, Node] = {}
        for key, _ in node.value:
            if _TAGS[key.tag] not in ("str", "merge"):
                kind = _KINDS[type(key)]
                written = quoted(key.value, 40) if kind == "scalar" else f"a {kind}"
                raise _Problem(key, f"{written} is a key that YAML does not read as text: quote it")
            first = before.setdefault(key.value, key)
            if first is not key:
                line = first.start_mark.line + 1
                raise _Problem(
                    key, f"the key {quoted(key.value)} is given twice, first in line {line}"
                )
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, OverflowError) as error:  # 0x_, 5,000 digits, !!bool x
            kind = _TAGS[node.tag]
            raise _Problem(
                node, f"{quoted(node.value, 40)} cannot be read as {kind}; quote it if it is text"
            ) from error
