"""The special tokens; see `tokens` and `tokenizer`."""

from cramjax.data.tokenizer import KINDS  # noqa: F401  # moved
from cramjax.tokens import SPECIAL_TOKENS  # noqa: F401  # moved
