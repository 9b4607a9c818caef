"""A document as one HTML page that needs nothing from elsewhere, and as Markdown."""

from __future__ import annotations

import base64
import html
import re
from importlib import resources

from stormlit import __version__
from stormlit.reports.document import Document, Figure, Film, Section, Table
from stormlit.reports.figures import SERIES, with_own_names

LONG = 42  # letters from which a cell may be broken into lines
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?%?( ?(±|of) ?[\d.e+-]+)?( \[.*\])?|-")


def as_html(document: Document) -> str:
    """The page: figures inline, videos and pictures embedded; it follows the reader's choice of light or dark."""
    style = resources.files("stormlit.reports").joinpath("page.css").read_text(encoding="utf-8")
    legend = "".join(
        f'<li><i style="background: var(--series-{index % SERIES})"></i>{_text(name)}</li>'
        for index, name in enumerate(document.legend)
    )
    sections = "\n".join(_section(section) for section in document.sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(document.title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
<header>
<h1>{_text(document.title)}</h1>
<p>{_text(document.summary)}</p>
<ul class="legend">{legend}</ul>
</header>
{sections}
<footer>stormlit {__version__}</footer>
</main>
</body>
</html>
"""


def _section(section: Section) -> str:
    parts = [f"<h2>{_text(section.title)}</h2>", *(f"<p>{_prose(line)}</p>" for line in section.lead)]
    if section.figures:
        figures = [_figure(figure, f"{section.key}-{index}") for index, figure in enumerate(section.figures)]
        parts.append(f'<div class="figures">{"".join(figures)}</div>')
    if section.films:
        parts.append(f'<div class="figures films">{"".join(map(_film, section.films))}</div>')
    parts += [_table(table) for table in section.tables]
    if section.notes:
        parts.append(f'<ul class="notes">{"".join(f"<li>{_prose(note)}</li>" for note in section.notes)}</ul>')
    return f'<section id="{section.key}">\n' + "\n".join(parts) + "\n</section>"


def _figure(figure: Figure, key: str) -> str:
    label = f'<svg role="img" aria-label="{_text(figure.caption)}"'
    svg = with_own_names(figure.svg, key).replace("<svg", label, 1)
    return f"<figure><figcaption>{_text(figure.caption)}</figcaption>{svg}</figure>"


def _film(film: Film) -> str:
    source = _data(film.media_type, film.content)
    caption = _text(film.caption)
    if film.media_type.startswith("video/"):
        poster = f' poster="{_data("image/png", film.poster)}"' if film.poster else ""
        shown = f'<video controls loop muted playsinline aria-label="{caption}"{poster} src="{source}"></video>'
    else:
        shown = f'<img alt="{caption}" src="{source}">'
    return f"<figure><figcaption>{caption}</figcaption>{shown}</figure>"


def _data(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _table(table: Table) -> str:
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.header)
    is_text = [not all(_NUMBER.fullmatch(cell) for cell in column) for column in columns]
    head = "".join(
        f'<th scope="col"{" class=text" if text else ""}>{_text(name)}</th>'
        for name, text in zip(table.header, is_text, strict=True)
    )
    rows = []
    for first, *cells in table.rows:
        tags = (f"<td{_classes(cell, text)}>{_text(cell)}</td>" for cell, text in zip(cells, is_text[1:], strict=True))
        rows.append(f'<tr><th scope="row">{_text(first)}</th>{"".join(tags)}</tr>')
    caption = f"<caption>{_text(table.caption)}</caption>" if table.caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _classes(cell: str, text: bool) -> str:
    names = (["text"] if text else []) + (["long"] if len(cell) > LONG else [])
    return f' class="{" ".join(names)}"' if names else ""


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))


def _text(text: str) -> str:
    return html.escape(text)


def as_markdown(document: Document) -> str:
    """Everything but figures and films, which the page has."""
    parts = [f"# {document.title}", document.summary]
    for section in document.sections:
        if not (section.lead or section.notes or section.tables):
            continue
        parts += [f"## {section.title}", *section.lead]
        parts += ["\n".join(f"- {note}" for note in section.notes)] if section.notes else []
        parts += [table for each in section.tables for table in ([f"{each.caption}:"] if each.caption else []) + [
            markdown_table(each.header, each.rows)
        ]]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
