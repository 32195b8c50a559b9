"""A page described once, and written as Markdown and as one HTML file.

A paragraph is a `str`. In all text but code, `**strong**` and `` `code` `` are marked
up; in HTML everything else is escaped.
"""

import html
import io
import re
from collections import namedtuple
from collections.abc import Sequence
from typing import Any

Heading = namedtuple("Heading", "text level", defaults=[2])  # level 1: of the page
Table = namedtuple("Table", "header rows")  # the header's cells may all be empty
Code = namedtuple("Code", "text")  # a command, or text that is shown as it is
Figure = namedtuple("Figure", "name drawn")  # by matplotlib; its file is <name>.png
Fold = namedtuple("Fold", "title blocks")  # a section that HTML shows when opened
Block = str | Heading | Table | Code | Figure | Fold

# No scripts, fonts or images from elsewhere. Wide content scrolls in its own box.
_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --back: #ffffff; --soft: #59636e;
  --line: #d1d9e0; --box: #f6f8fa; --link: #0969da; --blue: #1f77b4; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --back: #0d1117;
  --soft: #9198a1; --line: #3d444d; --box: #161b22; --link: #4493f8;
  --blue: #58a6e0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 56rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; } h2, summary { font-size: 1.25rem; font-weight: 600; }
h2, details { margin: 2rem 0 0; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0; }
summary { cursor: pointer; color: var(--link); }
.scroll, pre { overflow-x: auto; margin: 1rem 0; }
/* A shadow at an edge beyond which there is more. */
.scroll { background:
  linear-gradient(90deg, var(--back) 50%, transparent) left / 2rem 100% local,
  linear-gradient(270deg, var(--back) 50%, transparent) right / 2rem 100% local,
  linear-gradient(90deg, var(--line), transparent) left / .8rem 100%,
  linear-gradient(270deg, var(--line), transparent) right / .8rem 100%;
  background-repeat: no-repeat; }
table { border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .9rem .35rem 0;
  text-align: left; vertical-align: top; min-width: 4.5rem; max-width: 24rem; }
th { color: var(--soft); font-weight: 600; }
td strong { white-space: nowrap; }
pre, code { font: .85em/1.5 ui-monospace, monospace; background: var(--box);
  border-radius: 4px; padding: .1em .3em; }
pre { padding: .7rem .9rem; white-space: pre-wrap; }
svg { display: block; width: 100%; height: auto; max-width: 40rem; margin: 1.5rem 0 0; }
svg text { fill: var(--text); font-family: inherit; }
"""


def to_markdown(blocks: Sequence[Block]) -> str:
    """Returns the page; its figures are files beside it."""
    return "\n\n".join(_markdown(block) for block in blocks)


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Table(header, rows):
            lines = [header, ["---"] * len(header), *rows]
            escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
            return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
        case Code(text):
            return "\n".join(f"    {line}" for line in text.splitlines())
        case Figure(name):
            return f"![{name}]({name}.png)"
        case Fold(title, blocks):
            return to_markdown([Heading(title), *blocks])
    return block


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Returns the page as one file that loads nothing."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body><main>\n{_html_of(blocks)}\n</main></body>\n</html>\n"
    )


def _html_of(blocks: Sequence[Block]) -> str:
    return "\n".join(_html(block) for block in blocks)


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Table(header, rows):
            head = f"<thead>{_row('th', header)}</thead>" if any(header) else ""
            body = "\n".join(_row("td", row) for row in rows)
            table = f"<table>{head}<tbody>{body}</tbody></table>"
            return f'<div class="scroll">{table}</div>'
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Figure(name, drawn):
            return _svg(name, drawn)
        case Fold(title, blocks):
            summary = f"<summary>{_inline(title)}</summary>"
            return f"<details>{summary}\n{_html_of(blocks)}\n</details>"
    return f"<p>{_inline(block)}</p>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_inline(cell)}</{tag}>' for cell in cells)}</tr>"


def _inline(text: str) -> str:
    # Strong text begins with a letter or digit after a space: ** in a path is no mark.
    strong = re.sub(
        r"(?<!\S)\*\*(?=\w)(.+?)\*\*", r"<strong>\1</strong>", html.escape(text)
    )
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", strong)


def _svg(name: str, drawn: Any) -> str:
    """Returns a figure in the page's colours, with text that can be selected."""
    import matplotlib as mpl  # slow to import

    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # The salt makes identifiers unique in the page, and the same in every process.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        drawn.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :])
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = text.replace("#000000", "var(--text)").replace("#1f77b4", "var(--blue)")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(name)}"', 1)
