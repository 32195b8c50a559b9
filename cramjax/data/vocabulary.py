"""The corpus's tokenizer: trained on a sample of its text, or taken from another."""

import collections
import dataclasses
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cramjax import files
from cramjax.data import cuts, dedup, encoding, keep, processes, sources, tokenizer
from cramjax.data.corpus import TOKENIZER
from cramjax.data.encoding import Unit
from cramjax.data.readers import Problems, Reading
from cramjax.errors import UserError
from cramjax.schema import Config

CHECK_CHARS = 1 << 20  # text that the normaliser is tried on
MAX_REMOVED = 0.1  # share of the characters it may remove
# The tokenizer reads longer words as <unk>, and training takes the square of their
# length: a line of base64 would stop it.
_LONG_WORD = re.compile(r"\w{101,}|[^\w\s]{101,}")


def make(
    config: Config, units: Sequence[Unit], folder: Path, say: Callable[[str], None]
) -> None:
    """Leaves the tokenizer in the folder, if it is not there yet.

    Raises:
      UserError: there is no text, its vocabulary is too small or too large, or the
        normaliser removes much of it; or `config.data.tokenizer` does not fit.
    """
    path = folder / TOKENIZER
    if path.exists():
        return
    start = time.monotonic()
    _check_normalizer(config, units)
    if config.data.tokenizer:
        words_json = tokenizer.adopt(
            Path(config.data.tokenizer).expanduser(),
            config.model.vocab_size,
            config.data.normalizer,
            config.data.tokenizer_kind,
        )
    elif len(units) == 1:
        words_json = _train(config, units, folder)
    else:  # in a process of its own, whose memory is free again afterwards
        with processes.pool(1, processes.cores()) as pool:
            words_json = pool.submit(_train, config, units, folder).result()
    files.write_text(path, words_json)
    say(
        f"tokenizer: {config.model.vocab_size} entries, {time.monotonic() - start:.0f}s"
    )


def content_hash(path: str) -> str:
    """Returns what tells `config.data.tokenizer` from another file; "" for none.

    Raises:
      UserError: it cannot be read.
    """
    if not path:
        return ""
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"config.data.tokenizer: {path} cannot be read ({error.strerror})"
        ) from error


def _train(config: Config, units: Sequence[Unit], folder: Path) -> str:
    """Returns, as JSON, a tokenizer trained on the beginning of every part.

    Each gives `data.tokenizer_chars` by its weight; held-out documents give nothing,
    nor does what the cuts in the folder take out.
    """
    reading = Reading.of(config.data)
    cut = dedup.Rules.of(config.data).on
    problems: Problems = collections.Counter()
    portions = [portion for unit in units for portion in unit.portions]
    weights = [portion.weight for portion in portions]
    shares = sources.spread(config.data.tokenizer_chars, weights, 1)
    chars = dict(zip(portions, shares, strict=True))

    def sample() -> Iterator[str]:
        for unit in units:
            cuts_Rx4 = cuts.load(folder, unit.number) if cut else None
            for number, portion in enumerate(unit.portions):
                left = chars[portion]
                if not left:
                    continue
                documents = sources.documents(portion, reading, problems)
                for text in cuts.without(documents, cuts_Rx4, number):
                    if left <= 0:
                        break
                    if not encoding.is_held_out(text, config.data.held_out_share):
                        yield _LONG_WORD.sub(" ", text[:left])
                    left -= len(text)

    if next(sample(), None) is None:
        found = "; ".join(problems)
        raise UserError(
            f"config.data.sources: no text in {config.data.sources} ({found}); see "
            "data.txt_documents, data.text_field and data.keep in configs/default.py "
            "for what is a document"
        )
    steps, kind = config.data.normalizer, config.data.tokenizer_kind
    return tokenizer.train(sample, config.model.vocab_size, steps, kind).to_str()


def _check_normalizer(config: Config, units: Sequence[Unit]) -> None:
    """Refuses to throw away much of the text, as of another script, or all of it."""
    steps = tokenizer.normalizer(config.data.normalizer)
    reading = Reading.of(config.data)
    portions = [portion for unit in units for portion in unit.portions]
    weights = [portion.weight for portion in portions]
    before = after = 0
    for portion, chars in zip(
        portions, sources.spread(CHECK_CHARS, weights), strict=True
    ):
        limits = [n for n in (chars, portion.max_chars) if n is not None]
        some = dataclasses.replace(portion, max_chars=min(limits))
        for text in sources.documents(some, reading, collections.Counter()):
            text = re.sub(" {2,}", " ", text[:CHECK_CHARS])
            before, after = before + len(text), after + len(steps.normalize_str(text))
    if not before:
        keep.check(portions, reading)
    if after < (1 - MAX_REMOVED) * before:
        kept = [
            s for s in config.data.normalizer if s not in ("ascii", "strip_accents")
        ]
        raise UserError(
            f"config.data.normalizer removes {1 - after / before:.0%} of the text's "
            "characters (of another script?): to keep them, pass "
            f'--config.data.normalizer="{tuple(kept)!r}"'
        )
