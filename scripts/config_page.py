"""Writes docs/config.md from the comments and rules in cramjax/config/.

python scripts/config_page.py
"""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from pathlib import Path

from cramjax import files
from cramjax.config import Config
from cramjax.page import Block, Heading, Table, to_markdown

PAGE = Path("docs/config.md")
INTRODUCTION = """\
# Every key of the config

This page is written by `python scripts/config_page.py` from `cramjax/config/`; a test
compares them. The defaults are the paper's recipe; the files in `configs/` change some,
and the command line any, as in `--config.budget.hours=0.5`. Keys with a `*` may change
when a run is resumed. "Paper 4.4" is a section of the paper."""


def page() -> str:
    """Returns the page."""
    sections = [("", Config)]
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(field.type):
            sections.append((f"{field.name}.", field.type))
    blocks: list[Block] = [INTRODUCTION]
    for prefix, section in sections:
        title = prefix.removesuffix(".") or "The whole run"
        blocks += [Heading(title), section.__doc__, _table(prefix, section)]
    return to_markdown(blocks) + "\n"


def _table(prefix: str, section: type) -> Table:
    """Returns a row for each key of a section."""
    meanings, rows = _meanings(section), []
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type):
            continue
        rule = field.metadata["rule"]
        star = "*" if field.metadata["operational"] else ""
        rows.append(
            (
                f"`{prefix}{field.name}`{star}",
                f"`{field.default!r}`",
                _escaped(rule.text if rule else ""),
                _escaped(meanings[field.name]),
            )
        )
    return Table(("key", "default", "allowed", "meaning"), rows)


def _meanings(section: type) -> dict[str, str]:
    """Returns the comments above a key, and after it, of a section's source."""
    source = textwrap.dedent(inspect.getsource(section))
    comments = {  # {line: text}
        token.start[0]: token.string.removeprefix("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found, above = {}, 0
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            lines = range(above + 1, node.end_lineno + 1)
            texts = [comments[line] for line in lines if line in comments]
            found[node.target.id] = " ".join(texts)
        above = node.end_lineno
    return found


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;")  # `table` escapes what else is special


if __name__ == "__main__":
    files.write_text(PAGE, page())
