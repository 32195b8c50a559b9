"""Scores of existing weights, or of random ones, without a run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.checkpoints import weights
from cramjax.checkpoints.load import WEIGHTS as FOREIGN_WEIGHTS
from cramjax.checkpoints.load import Pretrained, load_foreign
from cramjax.config import (
    OPERATIONAL_KEYS,
    Config,
    flatten,
    from_dict,
    read_recorded,
    record,
    require,
    to_dict,
)
from cramjax.data.corpus import CORPUS, of_run
from cramjax.data.prepare import prepare
from cramjax.device.compile import use_cache
from cramjax.errors import UserError
from cramjax.flags import overridden, parse_command_line
from cramjax.glue import evaluate
from cramjax.run import CONFIG, check_workdir, lock_workdir
from cramjax.training.pretrain import SUMMARY

EVALUATION = "evaluation"  # in the checkpoint's folder: where scores are by default
WEIGHTS = "weights.json"  # in the workdir: which weights its scores are of


def score(argv: Sequence[str]) -> str:
    """Fine-tunes and scores as the arguments ask; returns glue.md and its path."""
    flags = ["checkpoint", "workdir", "tasks", "data_dir"]
    config, extras = parse_command_line(argv, flags)
    given = overridden(argv)
    named, folder = extras["checkpoint"], extras["data_dir"]
    checkpoint = Path(named) if named else None
    glue: dict[str, Any] = {}
    if extras["tasks"]:
        glue |= {"tasks": tuple(filter(None, extras["tasks"].split(",")))}
    if folder:
        glue |= {"data_dir": folder, "superglue_dir": folder}
    glue = {key: value for key, value in glue.items() if f"glue.{key}" not in given}
    if checkpoint is None:
        glue |= {"starts": ("random",)}
    config = dataclasses.replace(config, glue=dataclasses.replace(config.glue, **glue))
    require(bool(config.glue.tasks), "glue.tasks", config.glue.tasks, "one or more")
    foreign = None  # another project's model
    if checkpoint and (checkpoint / FOREIGN_WEIGHTS).is_file():
        foreign = load_foreign(checkpoint)
        config = _of_foreign(config, given, foreign)
    elif checkpoint:
        config = _of_checkpoint(config, given, checkpoint)
    default = checkpoint / EVALUATION if checkpoint else "runs/random"
    workdir = Path(extras["workdir"] or default)
    if (workdir / CORPUS).exists():
        raise UserError(
            f"--workdir={workdir} is the folder of a pretraining, not of scores alone: "
            f"pass --checkpoint={workdir} to score its weights, and another --workdir "
            f"(--checkpoint's {EVALUATION}/ if it is left out)"
        )
    check_workdir(workdir, config)
    tasks = evaluate.check(config, workdir)
    use_cache(config.compilation_cache)
    tasks = evaluate.fetch(config, tasks)
    if foreign:
        named_params, trained = {"pretrained": foreign.params}, foreign.tokenizer
        corpus_name = ""
    elif checkpoint:
        named_params = weights.read_run(config, checkpoint)
        trained, manifest = of_run(checkpoint)
        # The manifest of a corpus that was copied by hand has no name.
        corpus_name = manifest.get("name", "")
    else:
        corpus = prepare(config)
        named_params, trained, corpus_name = {}, corpus.tokenizer, corpus.path.name
    workdir.mkdir(parents=True, exist_ok=True)
    with lock_workdir(workdir):
        _record_source(workdir, checkpoint, corpus_name)
        record(workdir / CONFIG, config)
        evaluate.evaluate(
            config, named_params, trained, workdir, tasks, imported=foreign is not None
        )
    table = workdir / evaluate.TABLE
    return f"{table.read_text()}\nwritten to {table}"


def _of_checkpoint(config: Config, given: set[str], checkpoint: Path) -> Config:
    """Returns the config that the checkpoint was trained with, with `config.glue`.

    Raises:
      UserError: the checkpoint is missing, or a key outside `glue` was given with
        a value different from the checkpoint's.
    """
    if not (checkpoint / SUMMARY).is_file():
        raise UserError(
            f"--checkpoint={checkpoint}: no finished pretraining in this folder; pass "
            f"the --workdir of one, which has {SUMMARY}"
        )
    values = read_recorded(checkpoint / CONFIG, "bring it back")
    trained, asked = flatten(values), flatten(to_dict(config))
    for key in sorted(given - OPERATIONAL_KEYS - {"seed"}):
        # What was left to the device, the run has chosen.
        left = {"micro_batch": 0, "model.attention": "auto"}.get(key)
        if key.startswith("glue.") or asked[key] in (left, trained.get(key)):
            continue
        raise UserError(
            f"--config.{key}={asked[key]!r}: the weights of --checkpoint="
            f"{checkpoint} have {trained.get(key)!r}; leave it out"
        )
    values["glue"] = to_dict(config.glue)
    if "seed" in given:
        values["seed"] = config.seed
    return from_dict(values)


def _of_foreign(config: Config, given: set[str], foreign: Pretrained) -> Config:
    """Returns `config` with the shape of another project's model, and its template."""
    require(
        set(config.glue.starts) <= {"pretrained", "random"},
        "glue.starts",
        config.glue.starts,
        "'pretrained', 'random' or both: this checkpoint has no averages",
    )
    model = dataclasses.replace(
        foreign.model, dtype=config.model.dtype, attention=config.model.attention
    )
    glue = config.glue
    if "glue.empty_second" not in given:
        glue = dataclasses.replace(glue, empty_second=foreign.empty_second)
    return dataclasses.replace(config, model=model, glue=glue)


def _record_source(workdir: Path, checkpoint: Path | None, corpus_name: str) -> None:
    """Records which weights are scored; refuses to mix scores of different ones."""
    path = workdir / WEIGHTS
    resolved = str(checkpoint.resolve()) if checkpoint else ""
    source = {"checkpoint": resolved, "corpus": corpus_name}
    if (workdir / evaluate.RESULTS).exists():
        before = files.read_json(path, "pass another --workdir")
        if before != source:
            raise UserError(
                f"--workdir={workdir} has the scores of {before}, not of {source}: "
                "pass another --workdir"
            )
    files.write_record(path, source)
