"""The command line: --config, the keys of the config, and a command's own flags."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from cramjax.config.files import load, unknown
from cramjax.config.key import Rule
from cramjax.config.root import KEYS, Config
from cramjax.errors import UserError

KEY = re.compile(r"--?config\.")


def parse_command_line(
    argv: Sequence[str],
    extra_flags: Iterable[str] = (),
    switches: Sequence[str] = (),
) -> tuple[Config, dict[str, str]]:
    """Parses `--config=file.py --config.key=value ... --flag=value ... --switch`.

    Returns the config, and the values of "config", the extra flags and the switches,
    see `parse_flags`.

    Raises:
      UserError: anything wrong with the arguments or the config.
    """
    keys = [f"config.{key}" for key in KEYS]
    values, rest = parse_flags(argv, {"config": "a4000"}, extra_flags, switches, keys)
    config = load(values["config"], filter(KEY.match, rest))
    for argument in rest:
        if not KEY.match(argument):
            raise UserError(
                f"unexpected argument {argument!r}: flags look like --name=value"
            )
    return config, values


def parse_flags(
    argv: Sequence[str],
    needed: Mapping[str, str],
    optional: Iterable[str] = (),
    switches: Sequence[str] = (),
    keys: Sequence[str] = (),
) -> tuple[dict[str, str], list[str]]:
    """Parses `--flag=value ...`.

    Args:
      needed: an example for each flag that must be given.
      optional: other flags.
      switches: flags without a value.
      keys: "config.key" each, which a mistyped flag may have meant.

    Returns:
      {name: value} with "" for a flag that is not given and "on" for a switch, and the
      other arguments, including --config.key=value.

    Raises:
      UserError: a flag is unknown, missing or does not have a value.
    """
    values, rest = dict.fromkeys([*needed, *optional, *switches], ""), []
    otherwise = "--print_config lists all keys" if keys else "see --help"
    arguments = iter(argv)
    for argument in arguments:
        found = re.fullmatch(r"--?([A-Za-z][\w.-]*)(=.*)?", argument, re.DOTALL)
        if not found or KEY.match(argument):
            rest.append(argument)
            continue
        name, value = found[1], found[2]
        if name not in values:
            raise unknown(name, [*values, *keys], otherwise)
        if name in switches:
            if value:
                raise UserError(f"--{name} takes no value")
            value = "on"
        else:
            value = value[1:] if value else next(arguments, None)
            if not value:
                raise UserError(f"--{name} has no value: write --{name}=VALUE")
            value = os.path.expanduser(value)  # shells leave a "~" after "=" alone
        if name == "config" and values[name]:
            raise UserError(f"--config={values[name]} and --config={value}: pass one")
        values[name] = value
    for name, example in needed.items():
        if not values[name]:
            raise UserError(f"no {name}: pass --{name}={example}")
    return values, rest


def whole(values: Mapping[str, str], name: str, least: int, most: int = 10**6) -> int:
    """Returns a flag's whole number, `least` if it is not given; see `number`."""
    rule = Rule(lambda x: x in range(least, most + 1), f"from {least} to {most}")
    return int(number(values, name, least, rule))


def number(values: Mapping[str, str], name: str, default: float, rule: Rule) -> float:
    """Returns a flag's value as a number, or the default if it is not given.

    Raises:
      UserError: it is not a number, or the rule does not allow it.
    """
    try:
        value = float(values[name] or default)
    except ValueError:
        value = math.nan
    if not rule.allows(value):
        raise UserError(f"--{name}={values[name]}: must be {rule.text}")
    return value


def overridden(argv: Iterable[str]) -> set[str]:
    """Returns the keys that `--config.key=value` arguments name, without "config."."""
    return {KEY.sub("", a.partition("=")[0], 1) for a in argv if KEY.match(a)}
