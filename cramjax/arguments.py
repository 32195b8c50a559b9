"""What is on a command line: flags told from each other, and mistyped ones named."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from cramjax.errors import UserError, one_line

CUTOFF = 0.7  # of difflib's ratio: flags that are less alike are not named

# {flag: from its value to {key of the config: its value}}
Shortcuts = Mapping[str, Callable[[str], dict[str, str]]]


def parse_flags(
    argv: Sequence[str], needed: Mapping[str, str], optional: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Parses `--flag=value ...` of a command that has no `--config`.

    Args:
      argv: the arguments, without the program's name.
      needed: {name: example} of flags that must be given.
      optional: {name: help} of flags that need not.

    Returns:
      {name: value ("" where not given)}, and the other arguments, --config.key=value
      among them.

    Raises:
      UserError: a flag is unknown, missing or has no value.
    """
    values = flags.FlagValues()
    for name, text in {**needed, **optional}.items():
        flags.DEFINE_string(name, "", text, flag_values=values)
    for argument in argv:
        found = re.match(r"--?([A-Za-z][\w.-]*)(=|$)", argument)
        if found and found[1] not in values and not found[1].startswith("config."):
            raise unknown(found[1], [*needed, *optional], "see --help")
    try:
        rest = values(["cramjax", *argv], known_only=True)[1:]
    except flags.Error as error:
        raise UserError(one_line(error)) from error
    for name, example in needed.items():
        if not values[name].value:
            raise UserError(f"no {name}: pass --{name}={example}")
    return {name: values[name].value for name in (*needed, *optional)}, rest


def overridden(argv: Sequence[str]) -> set[str]:
    """Returns the keys that `--config.key=value` arguments name, without "config."."""
    names = (argument.lstrip("-").partition("=")[0] for argument in argv)
    return {name[7:] for name in names if name.startswith("config.")}


def split(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the path given by --config, and the other arguments."""
    paths, others, arguments = [], [], iter(argv)
    for argument in arguments:
        if argument.startswith("-"):
            argument = "--" + argument.lstrip("-")
        if argument == "--config":
            argument = f"--config={next(arguments, '')}"
        if argument.startswith("--config="):
            paths.append(argument.removeprefix("--config="))
        else:
            others.append(argument)
    if len(paths) == 1:
        return paths[0], others
    for name in (_name(argument) for argument in others if not paths):
        if name and "." not in name and _nearest(name, ["config"]):
            raise unknown(name, ["config"])
    found = " and ".join(f"--config={path}" for path in paths)
    raise UserError(f"{found or 'no config'}: pass one, e.g. configs/a4000.py")


def spelt_out(argument: str, shortcuts: Shortcuts) -> list[str]:
    """Returns an argument, or the ones that a shortcut stands for."""
    if (name := _name(argument)) not in shortcuts:
        return [argument]
    value = argument.partition("=")[2]
    return [f"--config.{key}={v}" for key, v in shortcuts[name](value).items()]


def override(argument: str, keys: Mapping[str, Any], flags: Sequence[str]) -> str:
    """Checks the key of `--key=value`; returns it with 1e6 as 1000000 for integers."""
    name = _name(argument)
    if not name:
        return argument
    equals, value = argument.partition("=")[1:]
    if name not in keys and name not in flags:
        raise unknown(name, [*flags, *keys])
    if not equals and name in keys:
        raise UserError(f"--{name} has no value: write --{name}=VALUE")
    if type(keys.get(name)) is int and re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d+", value):
        number = float(value)
        return f"--{name}={int(number)}" if number.is_integer() else argument
    return argument


def unknown(
    name: str, known: Sequence[str], otherwise: str = "see configs/default.py"
) -> UserError:
    """Returns an error that names the flags nearest to a mistyped one.

    Args:
      name: as it was typed, without its dashes.
      known: what there is.
      otherwise: what to say if none is near.
    """
    if any(flag.startswith(f"{name}.") for flag in known):
        return UserError(f"--{name} is a section of keys: write --{name}.KEY=VALUE")
    near = " or ".join(f"--{flag}" for flag in _nearest(name, known))
    what = "key" if name.startswith("config.") else "flag"
    hint = f"did you mean {near}?" if near else otherwise
    return UserError(f"--{name}: no such {what}; {hint}")


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """Returns the flags most like a name, by all of it or by what is behind a dot."""
    forms: dict[str, list[str]] = {}
    for flag in known:
        key = flag.removeprefix("config.")
        for form in dict.fromkeys((key, key.rpartition(".")[2])):
            forms.setdefault(form, []).append(flag)
    near = difflib.get_close_matches(name.removeprefix("config."), forms, 1, CUTOFF)
    return forms[near[0]] if near else []


def _name(argument: str) -> str:
    """Returns the name of `--name=value`; "" of what is no flag."""
    name = argument.partition("=")[0]
    return name.removeprefix("--") if name.startswith("--") else ""
