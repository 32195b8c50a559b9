"""The first documents of every source, and a corpus of them alone."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from cramjax.config import Config
from cramjax.data import sources
from cramjax.data.corpus import Corpus
from cramjax.data.prepare import prepare
from cramjax.data.readers import File, Records
from cramjax.errors import UserError

SAMPLE_CHARS = 2_000_000  # of text, from all sources together
PARTS_OPENED = 8  # of a source, spread over it
PIECES = 100  # the sample becomes so many documents or more: some are held out
CHARS_PER_ENTRY = 100  # of the sample, for its tokenizer


@dataclasses.dataclass(frozen=True)
class Sample:
    """The sources' first documents, and about how many characters they have in all."""

    texts: list[str]
    all_chars: float

    @property
    def chars(self) -> int:
        """Of the texts."""
        return sum(map(len, self.texts))


def read(config: Config, say: Callable[[str], None]) -> Sample:
    """Returns the first documents of every source, and says what they are.

    Raises:
      UserError: a source is missing, or its first documents have no text.
    """
    files = [file for file in sources.resolve(config.data) if file.max_chars != 0]
    texts = []
    for number, name in enumerate(config.data.sources):
        of_source = [file for file in files if file.source == number]
        step = -(-len(of_source) // PARTS_OPENED)
        opened = of_source[::step] if of_source else []
        records = Records(config.data)
        chars = SAMPLE_CHARS // len(config.data.sources) // max(len(opened), 1)
        found = [text for file in opened for text in _beginning(file, records, chars)]
        notes = "".join(
            f"; {what}: {n:,}" for what, n in sorted(records.problems.items())
        )
        if opened and not found:
            raise UserError(
                f"config.data.sources: no text at the beginning of {name!r}{notes}; "
                "see data.txt_documents, data.text_field and data.keep in "
                "cramjax/config/data.py for what is a document"
            )
        say(
            f"{name}: {len(found):,} documents at the beginning of {len(opened):,} of "
            f"{len(of_source):,} parts{notes}"
        )
        texts += found
    document_chars = sum(map(len, texts)) / max(len(texts), 1)
    return Sample(texts, sum(f.expected_chars(document_chars) for f in files))


def _beginning(file: File, records: Records, chars: int) -> Iterator[str]:
    for text in file.documents(records):
        yield text[:chars]
        chars -= len(text)
        if chars <= 0:
            return


def pack(config: Config, sample: Sample, scratch: Path) -> Corpus:
    """Returns the sample as a corpus; its vocabulary is one that it can fill.

    Args:
      config: without what leaves documents out of a corpus.
      sample: see `read`.
      scratch: the folder it is written to.
    """
    chars = sample.chars
    piece = max(chars // PIECES, 200)
    with (scratch / "sample.jsonl").open("w") as file:
        for text in sample.texts:
            for start in range(0, len(text), piece):
                print(json.dumps({"text": text[start : start + piece]}), file=file)
    data = dataclasses.replace(
        config.data,
        **{"sources": (str(scratch / "sample.jsonl"),), "dir": str(scratch / "data")},
        **{"shares": (), "max_chars": 0, "max_documents": 0, "keep": ()},
        **{"text_field": "text", "join_chars": 0, "held_out_share": 0.2},
        **{"max_tokens_per_char": 0.0, "min_document_chars": 0},
        **{"max_document_chars": 0, "drop_duplicates": False, "dedup_bytes": 0},
    )
    entries = config.model.vocab_size
    if not data.tokenizer:
        entries = min(entries, max(chars // CHARS_PER_ENTRY, 512))
    model = dataclasses.replace(config.model, vocab_size=entries)
    small = dataclasses.replace(config, data=data, model=model)
    return prepare(small, say=lambda line: None)
