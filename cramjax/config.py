"""From config files and flags to a `schema.Config`.

`load` and `parse_command_line` are the ways in, and both end in the same strict
parsing: every key is there, nothing else is, and every type fits.
"""

import dataclasses
import difflib
import math
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from cramjax.errors import UserError
from cramjax.schema import Config, require

# Changing one of these does not change what a workdir holds, so a run may be resumed
# with another value: where things are kept and how often they are written.
OPERATIONAL_KEYS = frozenset(
    [
        "compilation_cache",
        "data.dir",
        "checkpoint.every_minutes",
        "checkpoint.keep",
        "log.every_steps",
        "validation.every_minutes",
        "guard.max_loss",
        "guard.max_loss_after",
        "glue.tasks",
        "glue.data_dir",
        "glue.superglue_dir",
        "glue.tfds_dir",
    ]
)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the config as nested plain dicts, ready for JSON (tuples as lists)."""
    return {
        key: (
            to_dict(value)
            if dataclasses.is_dataclass(value)
            else list(value)
            if isinstance(value, tuple)
            else value
        )
        for key, value in (
            (f.name, getattr(config, f.name)) for f in dataclasses.fields(config)
        )
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"section.key": value} of nested mappings."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def from_dict(values: Mapping[str, Any]) -> Config:
    """Parses nested mappings strictly.

    Raises:
      UserError: a key is missing or unknown, or a value is of the wrong type or out of
        its range.
    """
    return _parse(Config, values, "")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file, as the command line does.

    Args:
      path: a Python file with `get_config()`, or `file.py:argument`.
      overrides: "key=value" or "--config.key=value"; of a key given twice the last
        one wins, the tuples of a tuple's key are joined.

    Raises:
      UserError: see `from_dict`; also if the file is missing or an override is
        malformed.
    """
    prefix = "--config."
    argv = [f"--config={path}"]
    argv += [o if o.startswith("-") else prefix + o for o in overrides]
    return parse_command_line(argv)[0]


def parse_command_line(
    argv: Sequence[str],
    extra_flags: Sequence[tuple[str, str]] = (),
    switches: Sequence[str] = (),
) -> tuple[Config, dict[str, str]]:
    """Parses `--config=file.py --config.key=value ... --flag=value ... --switch`.

    Args:
      argv: the arguments, without the program's name.
      extra_flags: (name, help) of string flags beside `--config`.
      switches: those of the extra flags that take no value.

    Returns:
      The config, and the extra flags' values ("" where not given, "on" of a switch).

    Raises:
      UserError: anything wrong with the arguments or the config.
    """
    path, argv = _split(argv)
    for name in switches:
        if any(argument.startswith(f"--{name}=") for argument in argv):
            raise UserError(f"--{name} takes no value")
    argv = [f"{a}=on" if a.removeprefix("--") in switches else a for a in argv]
    base = _load_file(path)
    keys = {f"config.{key}": v for key, v in flatten(base.to_dict()).items()}
    argv = [_override(a, keys, [name for name, _ in extra_flags]) for a in argv]
    values = flags.FlagValues()
    program = ["cramjax", *argv]
    holder = config_flags.DEFINE_config_dict(
        "config", base, flag_values=values, sys_argv=program
    )
    for name, text in extra_flags:
        flags.DEFINE_string(name, "", text, flag_values=values)
    try:
        rest = values(program)[1:]
    except (flags.Error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(_one_line(error)) from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags look like --key=value")
    extras = {name: values[name].value for name, _ in extra_flags}
    return from_dict(holder.value.to_dict()), extras


def parse_flags(
    argv: Sequence[str], needed: Mapping[str, str], optional: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Parses `--flag=value ...` of a command that has no `--config`.

    Args:
      argv: the arguments, without the program's name.
      needed: {name: example} of flags that must be given.
      optional: {name: help} of flags that need not.

    Returns:
      {name: value ("" where not given)}, and the other arguments.

    Raises:
      UserError: a flag is missing or has no value.
    """
    values = flags.FlagValues()
    for name, text in {**needed, **optional}.items():
        flags.DEFINE_string(name, "", text, flag_values=values)
    try:
        rest = values(["cramjax", *argv], known_only=True)[1:]
    except flags.Error as error:
        raise UserError(_one_line(error)) from error
    for name, example in needed.items():
        if not values[name].value:
            raise UserError(f"no {name}: pass --{name}={example}")
    return {name: values[name].value for name in (*needed, *optional)}, rest


def overridden(argv: Sequence[str]) -> set[str]:
    """Returns the keys that `--config.key=value` arguments name, without "config."."""
    names = (argument.lstrip("-").partition("=")[0] for argument in argv)
    return {name[7:] for name in names if name.startswith("config.")}


def _split(argv: Sequence[str]) -> tuple[str, list[str]]:
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
    if len(paths) != 1:
        found = " and ".join(f"--config={path}" for path in paths)
        raise UserError(f"{found or 'no config'}: pass one, e.g. configs/a4000.py")
    return paths[0], others


def _load_file(path: str) -> config_dict.ConfigDict:
    """Returns what the file's get_config() returns."""
    if not Path(path.split(":")[0]).is_file():
        raise UserError(f"--config={path}: no such file; pass e.g. configs/a4000.py")
    values = flags.FlagValues()
    program = ["cramjax", f"--config={path}"]
    holder = config_flags.DEFINE_config_file(
        "config", None, "", flag_values=values, sys_argv=program
    )
    try:
        values(program)
    except Exception as error:  # whatever the user's file raises
        what = f"{type(error).__name__}: {_one_line(error)}"
        raise UserError(f"--config={path} cannot be run: {what}") from error
    if not isinstance(holder.value, config_dict.ConfigDict):
        raise UserError(f"--config={path}: get_config() must return a ConfigDict")
    return holder.value


def _override(argument: str, keys: Mapping[str, Any], extra_flags: list[str]) -> str:
    """Checks the key of `--key=value`; returns it with 1e6 as 1000000 for integers."""
    name, equals, value = argument.removeprefix("--").partition("=")
    if not argument.startswith("--"):
        return argument
    known = [*keys, *extra_flags]
    if name not in known:
        short = {key.removeprefix("config."): key for key in known}
        near = difflib.get_close_matches(name.removeprefix("config."), short, n=1)
        hint = f"did you mean --{short[near[0]]}?" if near else "see configs/default.py"
        raise UserError(f"--{name}: no such key; {hint}")
    if not equals and name in keys:
        raise UserError(f"--{name} has no value: write --{name}=VALUE")
    if type(keys.get(name)) is int and re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d+", value):
        number = float(value)
        return f"--{name}={int(number)}" if number.is_integer() else argument
    return argument


def _one_line(error: Exception) -> str:
    """Returns the message; of a whole traceback in it, as config_flags has, the end."""
    text = str(error).strip()
    text = text.splitlines()[-1] if "Traceback" in text else text
    return textwrap.shorten(text, 200, placeholder=" ...")


def _parse(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    unknown = sorted(set(values) - set(names))
    missing = sorted(set(names) - set(values))
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.0)[0]
        raise UserError(
            f"config.{prefix}{unknown[0]}: no such key; did you mean "
            f"config.{prefix}{near}?"
        )
    if missing:
        raise UserError(
            f"config.{prefix}{missing[0]} is missing: start from configs/default.py, "
            "which has every key"
        )
    return cls(**{n: _parse_value(hints[n], values[n], f"{prefix}{n}") for n in names})


def _parse_value(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        require(isinstance(value, Mapping), key, value, "a section of keys")
        return _parse(hint, value, key + ".")
    if isinstance(hint, types.GenericAlias):  # tuple[x, ...]
        require(isinstance(value, (list, tuple)), key, value, "a tuple")
        return tuple(_parse_value(hint.__args__[0], v, key) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    require(type(value) is hint, key, value, f"of type {hint.__name__}")
    require(hint is not float or math.isfinite(value), key, value, "a finite number")
    return value
