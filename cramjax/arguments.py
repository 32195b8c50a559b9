"""See `cramjax.flags`."""

from cramjax.flags import overridden, parse_flags  # noqa: F401  # moved
