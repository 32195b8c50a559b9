"""How a key of the config is stated: `width: int = key(768, above(0))`."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

from cramjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which values a key may have: a test, and its description."""

    allows: Callable[[Any], bool]
    text: str


def key(
    default: Any,
    rule: Rule | None = None,
    *,
    absent: Any = dataclasses.MISSING,
    operational: bool = False,
) -> Any:
    """Returns the field of a key.

    Args:
      default: the value of the paper's recipe.
      rule: for its values; those that involve other keys are in `Section._relate`.
      absent: what the key means in a recorded config that does not have it, since it
        was written before the key existed. Every new key needs one; it may equal the
        default, but stays when that changes, so that finished runs stay loadable.
      operational: changing it does not change what a workdir holds, so a run may be
        resumed with another value.
    """
    metadata = {"rule": rule, "absent": absent, "operational": operational}
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """Base of the frozen dataclasses; `NameConfig` is the section `name`."""

    def __post_init__(self):
        """Raises a `UserError` for the first value that is not allowed."""
        for field in dataclasses.fields(self):
            rule = field.metadata.get("rule")
            if rule and not rule.allows(getattr(self, field.name)):
                self._refuse(field.name, rule.text)
        self._relate()

    def _relate(self) -> None:
        """Calls `_refuse` for values that are only wrong together."""

    def _refuse(self, name: str, allowed: str) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        key = f"{section}.{name}" if section else name
        require(False, key, operator.attrgetter(name)(self), allowed)


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raises a `UserError` that names the key, its value and what is allowed."""
    if not ok:
        raise UserError(f"config.{key} is {value!r}: must be {allowed}")


def above(low: float) -> Rule:
    """Returns the rule `> low`."""
    return Rule(lambda x: x > low, f"> {low}")


def at_least(low: float, note: str = "") -> Rule:
    """Returns the rule `>= low`; the note is added to the message in brackets."""
    return Rule(lambda x: x >= low, f">= {low}" + (note and f" ({note})"))


def within(interval: str) -> Rule:
    """Returns the rule of an interval such as "(0, 1]", which excludes 0."""
    low, high = map(float, interval[1:-1].split(","))
    lower = {"[": operator.ge, "(": operator.gt}[interval[0]]
    upper = {"]": operator.le, ")": operator.lt}[interval[-1]]
    return Rule(lambda x: lower(x, low) and upper(x, high), f"in {interval}")


def one_of(*names: str) -> Rule:
    """Returns the rule of a choice."""
    return Rule(lambda x: x in names, f"one of {names}")


def increasing(values: tuple[float, ...]) -> bool:
    """Returns whether each value is above the one before."""
    return list(values) == sorted(set(values))
