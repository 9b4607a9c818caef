"""What a YAML file may contain before anybody builds it: no aliases that multiply, nothing without end."""

from __future__ import annotations

import yaml

MAX_BYTES = 1 << 20
MAX_NODES = 100_000


def check_yaml(content: bytes) -> None:
    """Raise ``ValueError`` for a text that is empty, too long, or would be too large with its aliases written out.

    Also raises ``yaml.YAMLError`` for what is not YAML, ``UnicodeDecodeError`` for what is not text, and
    ``RecursionError`` for what is nested too deeply.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has {len(content):,} bytes, a configuration has at most {MAX_BYTES:,}")
    root = yaml.compose(content.decode(), Loader=yaml.SafeLoader)
    if root is None:
        raise ValueError("it is empty")
    if _expanded(root, {}) > MAX_NODES:
        raise ValueError(f"with its aliases written out it has more than {MAX_NODES:,} values")


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """The values a node stands for. An alias is the very node it names, so each is counted once and added often."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise ValueError("an alias contains itself")
        return known[id(node)]
    known[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]
