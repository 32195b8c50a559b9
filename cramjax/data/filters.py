"""Which documents are left out of a corpus."""

import dataclasses
from collections.abc import Callable

from cramjax.schema import DataConfig


@dataclasses.dataclass(frozen=True)
class Filters:
    """Limits of what is kept, by their keys in `config.data`; 0 = no limit."""

    max_tokens_per_char: float
    min_document_chars: int
    max_document_chars: int

    @classmethod
    def of(cls, config: DataConfig) -> "Filters":
        """Returns what the config says."""
        return cls(*(getattr(config, field.name) for field in dataclasses.fields(cls)))

    def dropped_by(self, text: str, tokens: int) -> str | None:
        """Returns the first key whose limit a document breaks, None if it is kept.

        Args:
          text: the document as it was read.
          tokens: how many it takes in the store, the special ones included.
        """
        for key, breaks in _BREAKS.items():
            limit = getattr(self, key)
            if limit and breaks(text, tokens, limit):
                return key
        return None


# The first one is the paper's (arXiv 2212.14034, section 4.4): text that the tokenizer
# compresses badly is not text.
_BREAKS: dict[str, Callable[[str, int, float], bool]] = {
    "max_tokens_per_char": lambda text, tokens, limit: tokens > limit * len(text),
    "min_document_chars": lambda text, tokens, limit: len(text) < limit,
    "max_document_chars": lambda text, tokens, limit: len(text) > limit,
}
