"""What every check of a value says when it fails."""

from cramjax.errors import UserError


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raises a `UserError` that names the key, its value and what is allowed."""
    if not ok:
        raise UserError(f"config.{key} is {value!r}: must be {allowed}")
