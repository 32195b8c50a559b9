"""From config files and flags to a `schema.Config`.

`load` and `parse_command_line` are the ways in, and both end in the same strict
parsing: every key is there, nothing else is, and every type fits.
"""

import dataclasses
import difflib
import inspect
import math
import runpy
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from cramjax import arguments, files
from cramjax.arguments import Shortcuts
from cramjax.errors import UserError, one_line
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

# By its place: the working folder may have a package "configs" of its own.
DEFAULT = Path(__file__).parents[1] / "configs" / "default.py"

# Of config.json and of the checkpoints beside it; a config.json without the number has
# format 1. Raise it when a run that the version before began cannot be resumed.
FORMAT = 2

# Keys that were added after the first format, each with the value that means "as before
# the key existed". Every new key comes in here, so that finished runs stay loadable.
NEUTRAL: dict[str, Any] = {
    "compilation_cache": "",
    "model.activation": "gelu",
    "model.decoder_bias": False,
    "model.embedding_norm": True,
    "model.embedding_width": 0,
    "model.ffn": "gated",
    "model.ffn_every": 1,
    "model.final_norm": True,
    "model.first_norm": True,
    "model.head_transform": False,
    "model.init": "normal",
    "model.linear_bias": False,
    "model.mixing": "attention",
    "model.norm": "layernorm",
    "model.norm_placement": "pre",
    "model.positions": "scaled_sinusoidal",
    "model.qkv_bias": False,
    "model.repeats": 1,
    "model.sparse_prediction": True,
    "model.token_types": 0,
    "data.cls": False,
    "data.dedup_bytes": 0,
    "data.dedup_chunk_bytes": 1 << 29,
    "data.drop_duplicates": False,
    "data.join_chars": 0,
    "data.keep": [],
    "data.licence": "",
    "data.max_chars": 0,
    "data.max_document_chars": 0,
    "data.max_documents": 0,
    "data.min_document_chars": 0,
    "data.normalizer": [
        "quotes",
        "nfd",
        "lowercase",
        "strip_accents",
        "spaces",
        "ascii",
    ],
    "data.sep": True,
    "data.shares": [],
    "data.split": "train",
    "data.text_field": "text",
    "data.tokenizer": "",
    "data.tokenizer_chars": 100_000_000,
    "data.tokenizer_kind": "wordpiece",
    "data.txt_documents": "blank_line",
    "objective.final_mask_rate": 0.0,
    "objective.mask_share": 0.8,
    "objective.random_share": 0.1,
    "objective.separate_documents": False,
    "curriculum.lengths": [],
    "curriculum.starts": [],
    "curriculum.unfold": True,
    "optimizer.name": "adamw",
    "schedule.cooldown": 0.0,
    "schedule.curve": "triangle",
    "schedule.cycles": 4,
    "schedule.power": 1.0,
    "schedule.updates": 0,
    "schedule.warmup": 0.0,
    "averaging.ema_decay": 0.0,
    "averaging.lawa_every": 100,
    "averaging.lawa_last": 0,
    "guard.max_bad_steps": 50,
    "guard.max_loss": 0.0,
    "guard.max_loss_after": 0.125,
    "guard.rate_factor": 0.5,
    "validation.every_minutes": 0.0,
    "glue.empty_second": True,
    "glue.own_dir": "",
    "glue.own_label": "label",
    "glue.own_metric": "accuracy",
    "glue.own_texts": ["text"],
    "glue.superglue_dir": "superglue_data",
    "glue.test_sets": False,
    "glue.tfds_dir": "",
    "glue.trials_at_once": 0,
    "glue.warmup_steps": 0,
}

# What a value of each type is, for people.
EXPECTED = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text, in quotes",
    tuple: "a tuple, ('a', 'b') or (1, 2) say",
}


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


def record(path: Path, config: Config) -> None:
    """Writes config.json, which `read_recorded` reads."""
    files.write_json(path, {"format": FORMAT, **to_dict(config)})


def read_recorded(path: Path, way_out: str) -> dict[str, Any]:
    """Reads a config.json of this version or of an earlier one.

    Returns its nested values with "format", and with those of `NEUTRAL` for keys that
    the version that wrote it did not have.

    Raises:
      UserError: it is missing, damaged or of a later version; the message ends in
        `way_out`.
    """
    values = files.read_json(path, way_out)
    found = values.setdefault("format", 1)
    if found not in range(1, FORMAT + 1):
        raise UserError(
            f"{path} has the format {found!r}, and this version of cramjax reads those "
            f"up to {FORMAT}: use the version that wrote it, or {way_out}"
        )
    for key, value in NEUTRAL.items():
        section, _, name = key.rpartition(".")
        tree = values.setdefault(section, {}) if section else values
        if isinstance(tree, dict):
            tree.setdefault(name, value)
    return values


def from_recorded(values: Mapping[str, Any]) -> Config:
    """Parses what `read_recorded` returns strictly.

    Raises:
      UserError: see `from_dict`.
    """
    return from_dict({key: x for key, x in values.items() if key != "format"})


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
    shortcuts: Shortcuts = types.MappingProxyType({}),
    switches: Sequence[str] = (),
) -> tuple[Config, dict[str, str]]:
    """Parses `--config=file.py --config.key=value ... --flag=value ... --switch`.

    Args:
      argv: the arguments, without the program's name.
      extra_flags: (name, help) of string flags beside `--config`.
      shortcuts: flags that stand for keys.
      switches: those of the extra flags that take no value.

    Returns:
      The config, and the extra flags' values ("" where not given, "on" of a switch).

    Raises:
      UserError: anything wrong with the arguments or the config.
    """
    path, argv = arguments.split(argv)
    for name in switches:
        if any(argument.startswith(f"--{name}=") for argument in argv):
            raise UserError(f"--{name} takes no value")
    argv = [f"{a}=on" if a.removeprefix("--") in switches else a for a in argv]
    base = _load_file(path)
    keys = {f"config.{key}": v for key, v in flatten(base.to_dict()).items()}
    names = [*(name for name, _ in extra_flags), *shortcuts]
    argv = [long for short in argv for long in arguments.spelt_out(short, shortcuts)]
    argv = [arguments.override(argument, keys, names) for argument in argv]
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
        for argument in argv:
            name, _, value = argument.removeprefix("--").partition("=")
            if name in keys and str(error).startswith(f"flag {argument}:"):
                key = name.removeprefix("config.")
                require(False, key, value, EXPECTED[type(keys[name])])
        raise UserError(one_line(error)) from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags look like --key=value")
    extras = {name: values[name].value for name, _ in extra_flags}
    return from_dict(holder.value.to_dict()), extras


def _load_file(path: str) -> config_dict.ConfigDict:
    """Returns what the file's get_config() returns, given the row behind a colon."""
    file, colon, row = path.partition(":")
    if not Path(file).is_file():
        raise UserError(f"--config={path}: no such file; pass e.g. configs/a4000.py")
    given = [row] if colon else []
    try:
        names = runpy.run_path(file)
        get_config = names["get_config"]
        _check_row(file, given, get_config, names.get("ROWS", {}))
        config = get_config(*given)
    except UserError as error:
        raise UserError(f"--config={path}: {error}") from error
    except Exception as error:  # whatever the user's file raises
        what = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"--config={path} cannot be run: {what}") from error
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(f"--config={path}: get_config() must return a ConfigDict")
    return config


def _check_row(
    file: str, given: Sequence[str], get_config: Callable, rows: Mapping[str, Any]
) -> None:
    """Refuses a row that a file has not, and a file with rows without one.

    Args:
      file: the file.
      given: the row, if there is one.
      get_config: takes it.
      rows: the file's ROWS, if it has such a table.
    """
    parameters = inspect.signature(get_config).parameters.values()
    there = f"the rows are {', '.join(rows)}"
    if given and not parameters:
        raise UserError(f"the file has no rows; pass --config={file}")
    if not given and any(p.default is p.empty for p in parameters):
        example = next(iter(rows), "ROW")
        there = f"; {there}" if rows else ""
        raise UserError(f"name a row, --config={file}:{example} say{there}")
    if given and rows and given[0] not in rows:
        near = difflib.get_close_matches(given[0], rows, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no row {given[0]!r}; {meant}{there}")


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
        require(isinstance(value, (list, tuple)), key, value, EXPECTED[tuple])
        return tuple(
            _parse_value(hint.__args__[0], item, f"{key}[{place}]")
            for place, item in enumerate(value)
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    require(type(value) is hint, key, value, EXPECTED[hint])
    require(hint is not float or math.isfinite(value), key, value, "a finite number")
    return value
