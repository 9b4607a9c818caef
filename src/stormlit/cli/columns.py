"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def columns(rows: Sequence[Sequence[str]], others: Callable[[str, int], str] = str.rjust) -> list[str]:
    """Lines with columns of equal width: the first to the left, the others as ``others`` puts them.

    >>> columns([["phase", "time"], ["acting", "3"]])
    ['phase   time', 'acting     3']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(others, row[1:], widths[1:])]).rstrip() for row in rows]
