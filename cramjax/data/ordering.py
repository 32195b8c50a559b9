"""Orders of blocks; see `order`."""

from cramjax.data.order import BlockStream  # noqa: F401  # moved
