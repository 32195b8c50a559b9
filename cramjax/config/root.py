"""The whole config, as nested dicts and in config.json."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.config import training
from cramjax.config.data import CurriculumConfig, DataConfig, ObjectiveConfig
from cramjax.config.glue import GlueConfig
from cramjax.config.key import Rule, Section, at_least, key, one_of, require
from cramjax.config.model import ModelConfig
from cramjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config(Section):
    """Everything a run depends on."""

    # For everything random: initialization, masking, dropout and shuffling.
    seed: int = key(0, Rule(lambda x: 0 <= x < 2**31, "in [0, 2^31)"))
    # Where pretraining may run: on a GPU only, or on anything.
    platform: str = key("gpu", one_of("gpu", "any"))
    # A workdir, or a folder with another project's model, whose weights pretraining
    # begins with, and whose shape and tokenizer it takes; "" = random weights.
    init_from: str = key("", absent="")
    # Hash of these weights; "" = set when pretraining begins, and compared afterwards.
    init_hash: str = key("", absent="")
    # Sequences per forward pass; 128 is for 16 GB (A4000); 0 = the most that fit. The
    # batch's ramp begins with one micro-batch.
    micro_batch: int = key(128, at_least(0, "sequences; 0 = the most that fit"))
    # GPUs that train at once: for `describe` and `plan`. A run fills in the most that
    # it has had.
    devices: int = key(1, at_least(1), absent=1, operational=True)
    # Compiled programs are kept here, for all runs; "" = nowhere. It may be deleted.
    compilation_cache: str = key("~/.cache/cramjax", absent="", operational=True)
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    optimizer: training.OptimizerConfig = training.OptimizerConfig()
    schedule: training.ScheduleConfig = training.ScheduleConfig()
    averaging: training.AveragingConfig = training.AveragingConfig()
    batch: training.BatchConfig = training.BatchConfig()
    budget: training.BudgetConfig = training.BudgetConfig()
    checkpoint: training.CheckpointConfig = training.CheckpointConfig()
    log: training.LogConfig = training.LogConfig()
    profile: training.ProfileConfig = training.ProfileConfig()
    guard: training.GuardConfig = training.GuardConfig()
    validation: training.ValidationConfig = training.ValidationConfig()
    glue: GlueConfig = GlueConfig()

    def _relate(self) -> None:
        model, objective, batch = self.model, self.objective, self.batch
        length = model.max_length
        lengths = self.curriculum.lengths or (length,)
        if self.micro_batch > batch.sequences:
            limit = f"at most batch.sequences={batch.sequences}"
            self._refuse("micro_batch", limit)
        if model.added_positions == "learned" and self.glue.max_length > length:
            positions = f"at most model.max_length={length}, the number of learned"
            self._refuse("glue.max_length", f"{positions} positions")
        needed = model.mixing == "attention" and self.data.sep
        if objective.separate_documents and not needed:
            unless = "False, unless model.mixing is 'attention' and data.sep is True"
            self._refuse("objective.separate_documents", unless)
        if model.late_masks and (objective.mask_share < 1 or objective.final_mask_rate):
            unless = "0, unless objective.mask_share is 1 and final_mask_rate is 0"
            self._refuse("model.late_masks", unless)
        update = batch.sequences * length
        if not batch.ramp_share and 0 < self.budget.tokens < update:
            self._refuse(
                "budget.tokens",
                f"at least {update}, one update of batch.sequences={batch.sequences} "
                "(or batch.ramp_share above 0)",
            )
        divides = all(length % n == 0 for n in lengths) or not self.curriculum.unfold
        if max(lengths) > length or not divides:
            self._refuse(
                "curriculum.lengths",
                f"at most model.max_length={length}, and divisors of it with "
                "curriculum.unfold=True",
            )
        counts = [*lengths, length]
        if model.late_masks:  # the first layers see the rest of the masks
            counts += [n - round(objective.mask_rate * n) for n in lengths]
        if model.attention == "cudnn" and (odd := [n for n in counts if n % 2]):
            even = f"for sequences of {odd[0]} tokens (cuDNN's have even lengths)"
            self._refuse("model.attention", f"'xla' or 'auto' {even}")
        first, last = objective.mask_rate, objective.final_mask_rate
        for name, rate, shortest in (
            ("objective.mask_rate", first, lengths[0]),
            ("objective.final_mask_rate", last or first, lengths[0]),
            ("validation.mask_rate", self.validation.mask_rate, length),
        ):
            if round(rate * shortest) < 1:
                one = "large enough to mask one position of a sequence of"
                self._refuse(name, f"{one} {shortest}")
            if model.late_masks and round(rate * shortest) == shortest:
                one = "small enough, with model.late_masks, to keep one position of"
                self._refuse(name, f"{one} {shortest}")
        for start in self.glue.starts:
            if start not in ("pretrained", "random", *self.averaging.names):
                unless = f"without {start!r}, unless averaging.{start}_... is set"
                self._refuse("glue.starts", unless)


def _fields(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Yields ("section.key", its field) of all keys."""
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from _fields(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


KEYS = dict(_fields(Config))  # {"section.key": field}
OPERATIONAL_KEYS = frozenset(
    name for name, field in KEYS.items() if field.metadata["operational"]
)
# {key that was added after the first format: its value in records without it}
ABSENT = {
    name: list(value) if isinstance(value, tuple) else value
    for name, field in KEYS.items()
    if (value := field.metadata["absent"]) is not dataclasses.MISSING
}

# Of config.json and of the checkpoints beside it; a config.json without the number has
# format 1. Raise it when a run begun by the previous version cannot be resumed.
FORMAT = 2


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config or a section as nested dicts, as in JSON (tuples as lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"section.key": value} of nested mappings."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def from_dict(values: Mapping[str, Any]) -> Config:
    """Parses nested mappings strictly, but ignores the "format" of records.

    Raises:
      UserError: a key is missing or unknown, or its value is not allowed.
    """
    return _parse(Config, {k: x for k, x in values.items() if k != "format"}, "")


def model_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """Parses the section `model` alone, see `from_dict`."""
    return _parse(ModelConfig, values, "model")


def _parse(hint: Any, value: Any, name: str) -> Any:
    """Returns the value as the section or type `hint`; `name` is for messages."""
    if dataclasses.is_dataclass(hint):
        require(isinstance(value, Mapping), name, value, "a section of keys")
        prefix = name and f"{name}."
        fields = {field.name: field.type for field in dataclasses.fields(hint)}
        for unknown in sorted(value.keys() - fields):
            near = difflib.get_close_matches(unknown, fields, n=1, cutoff=0.0)[0]
            shown = repr(unknown)[1:-1]  # a line break in it stays in the line
            raise UserError(
                f"config.{prefix}{shown}: no such key; did you mean "
                f"config.{prefix}{near}?"
            )
        for missing in sorted(fields.keys() - value.keys()):
            raise UserError(
                f"config.{prefix}{missing} is missing: start from "
                "cramjax.config.defaults(), which has every key"
            )
        return hint(**{k: _parse(fields[k], value[k], prefix + k) for k in fields})
    if isinstance(hint, types.GenericAlias):  # tuple[x, ...]
        require(isinstance(value, (list, tuple)), name, value, EXPECTED[tuple])
        item = typing.get_args(hint)[0]
        return tuple(_parse(item, x, f"{name}[{i}]") for i, x in enumerate(value))
    if hint is float and type(value) is int:
        value = float(value)
    if hint is int and type(value) is float and value.is_integer():
        value = int(value)  # 1.5e6
    finite = hint is not float or (type(value) is float and math.isfinite(value))
    require(type(value) is hint and finite, name, value, EXPECTED[hint])
    return value


# Names of the types in messages.
EXPECTED = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "text, in quotes",
    tuple: "a tuple such as ('a', 'b') or (1, 2)",
}


def record(path: Path, config: Config) -> None:
    """Writes config.json, which `read_recorded` reads."""
    files.write_record(path, {"format": FORMAT, **to_dict(config)})


def read_recorded(path: Path, hint: str) -> dict[str, Any]:
    """Returns the nested values of a config.json, even an earlier version's.

    "format" is among them, and `ABSENT` for keys that are newer than the file.

    Raises:
      UserError: it is missing, damaged or of a later version; the message ends in
        `hint`.
    """
    values = files.read_json(path, hint)
    found = values.setdefault("format", 1)
    if found not in range(1, FORMAT + 1):
        raise UserError(
            f"{path} has the format {found!r}, and this version of cramjax reads those "
            f"up to {FORMAT}: use the version that wrote it, or {hint}"
        )
    for full_name, value in ABSENT.items():
        section, _, name = full_name.rpartition(".")
        tree = values.setdefault(section, {}) if section else values
        if isinstance(tree, dict):
            tree.setdefault(name, value)
    return values
