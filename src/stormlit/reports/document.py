"""What a page is made of, apart from how it looks: sections of sentences, tables, figures and films."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Table:
    """The first column is a heading of its row, numbers stand to the right."""

    header: list[str]
    rows: list[list[str]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """svg: an ``<svg>`` element.  caption: what it shows."""

    svg: str
    caption: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Film:
    """A video or picture, as the bytes of its file.  media_type: such as "video/mp4".  poster: the PNG that a video
    shows before it is played.
    """

    content: bytes
    media_type: str
    caption: str
    poster: bytes = b""


@dataclass(slots=True)
class Section:
    """key: of its place in the page.  lead: paragraphs before the rest; notes: a list after them."""

    key: str
    title: str
    lead: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass(slots=True)
class Document:
    """legend: the variants in the order of their colours."""

    title: str
    summary: str
    legend: list[str]
    sections: list[Section]
