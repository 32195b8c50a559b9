"""Config files: Python with `get_config()`, from anywhere or by name from configs/."""

import ast
import dataclasses
import difflib
import inspect
import runpy
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from cramjax.config.data import TOKENIZER_KEYS
from cramjax.config.model import CHOSEN_MODEL_KEYS
from cramjax.config.root import KEYS, Config, from_dict
from cramjax.errors import UserError, one_line

# In an installed package, and in the repository.
_PLACES = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
FOLDER = next(folder for folder in _PLACES if folder.is_dir())


def defaults() -> config_dict.ConfigDict:
    """Returns every key with its value in the paper's recipe, to be changed."""
    return config_dict.ConfigDict(dataclasses.asdict(Config()))


def find(file: str | Path) -> Path:
    """Returns the path of a Python file, or of one of configs/, such as "data/c4".

    Raises:
      UserError: there is neither.
    """
    if Path(file).is_file():
        return Path(file)
    paths = {
        path.relative_to(FOLDER).with_suffix("").as_posix(): path
        for path in sorted(FOLDER.rglob("*.py"))
    }
    name = str(file).removesuffix(".py")
    if name in paths:
        return paths[name]
    near = difflib.get_close_matches(name.removeprefix("configs/"), paths, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    known = ", ".join(name for name in paths if "/" not in name)
    raise UserError(
        f"{file}: no such file, and no config has this name; {meant}there are {known}"
    )


def module(file: str | Path) -> types.SimpleNamespace:
    """Returns the names that a config file defines, see `find`."""
    return types.SimpleNamespace(**runpy.run_path(str(find(file))))


def from_file(
    path: str, function: str = "get_config", kind: type = config_dict.ConfigDict
) -> Any:
    """Returns what a function of a Python file returns.

    Args:
      path: see `find`; a row may follow, `file.py:row`.
      function: its name.
      kind: the type of what it returns.

    Raises:
      UserError: the file is missing, does not run or has no such row.
    """
    file, colon, row = path.partition(":")
    given = [row] if colon else []
    found = find(file)
    try:
        names = module(found)
        make = getattr(names, function)
        _check_row(file, given, make, getattr(names, "ROWS", {}))
        made = make(*given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # whatever the user's file raises
        what = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{path} cannot be run: {what}") from error
    if not isinstance(made, kind):
        raise UserError(f"{path}: {function}() must return a {kind.__name__}")
    return made


def _check_row(
    file: str, given: Sequence[str], function: Callable, rows: Mapping[str, Any]
) -> None:
    """Refuses an unknown row, and no row where the file needs one."""
    parameters = inspect.signature(function).parameters.values()
    known = f"the rows are {', '.join(rows)}"
    if given and not parameters:
        raise UserError(f"the file has no rows; pass {file}")
    if not given and any(p.default is p.empty for p in parameters):
        example = next(iter(rows), "ROW")
        known = f"; {known}" if rows else ""
        raise UserError(f"name a row, for example {file}:{example}{known}")
    if given and rows and given[0] not in rows:
        near = difflib.get_close_matches(given[0], rows, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no row {given[0]!r}; {meant}{known}")


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a config file, as the command line does.

    >>> load("a4000", ["budget.hours=1"]).budget.hours
    1.0

    Args:
      path: see `from_file`.
      overrides: "key=value" or "--config.key=value"; of a key given twice the last
        one wins.

    Raises:
      UserError: see `from_dict` and `from_file`; or an override is malformed.
    """
    try:
        values = from_file(str(path)).to_dict()
    except UserError as error:
        raise UserError(f"--config={error}") from error
    return changed(values, overrides)


def changed(values: dict[str, Any], overrides: Iterable[str]) -> Config:
    """Returns the config of nested values, with overrides, see `load`."""
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.lstrip("-").removeprefix("config.").partition("=")
        if key not in KEYS:
            raise unknown(f"config.{key}", [f"config.{known}" for known in KEYS])
        if not equals:
            raise UserError(f"--config.{key} has no value: write --config.{key}=VALUE")
        changes[key] = _value(key, text)
    if "data.sources" in changes:  # its licence is not that of the config's text
        changes.setdefault("data.licence", "")
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    config = from_dict(values)
    if config.init_from and (follow := sorted(filter(_is_of_the_model, changes))):
        raise UserError(
            f"--config.{follow[0]}: this is taken from the model in config.init_from="
            f"{config.init_from}; leave it out"
        )
    return config


def _is_of_the_model(name: str) -> bool:
    """Returns whether a key follows from the model that `init_from` names."""
    section, _, key = name.rpartition(".")
    chosen = section == "model" and key not in CHOSEN_MODEL_KEYS
    return chosen or (section == "data" and key in TOKENIZER_KEYS)


def _value(key: str, text: str) -> Any:
    """Returns what a key's text stands for: a Python literal, or else the text."""
    kind = KEYS[key].type
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text.title() if kind is bool else text)
    except (ValueError, SyntaxError):
        value = text
    if kind in (bool, int, float) or isinstance(value, (tuple, list)):
        return value
    return value if text.startswith(("(", "[")) else (value,)  # not a broken tuple


def unknown(
    name: str, known: Iterable[str], otherwise: str = "--print_config lists all keys"
) -> UserError:
    """Returns an error that names the flags nearest to a mistyped one.

    Args:
      name: as it was typed, without its dashes.
      known: the flags that exist.
      otherwise: what to do if none is near.
    """
    forms: dict[str, list[str]] = {}  # {a flag, or its last part: flags}
    for flag in known:
        if flag.startswith(f"{name}."):
            return UserError(f"--{name} is a section of keys: write --{name}.KEY=VALUE")
        key = flag.removeprefix("config.")
        for form in dict.fromkeys((key, key.rpartition(".")[2])):
            forms.setdefault(form, []).append(f"--{flag}")
    near = difflib.get_close_matches(name.removeprefix("config."), forms, 1, 0.7)
    what = "key" if name.startswith("config.") else "flag"
    hint = f"did you mean {' or '.join(forms[near[0]])}?" if near else otherwise
    return UserError(f"--{name}: no such {what}; {hint}")
