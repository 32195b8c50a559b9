"""The type of stored tokens; see `tokens`."""

from cramjax.tokens import token_dtype  # noqa: F401  # moved
