"""Rows x seeds under one budget: what a change is worth, and how sure that is."""

import dataclasses
import logging
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramjax import files, markdown
from cramjax.config import Config, load
from cramjax.errors import TrainingFailed, UserError
from cramjax.run import run
from cramjax.training.pretrain import SUMMARY

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
      config: path of the config that all rows start from.
      overrides: of all rows, "key=value".
      rows: {name: overrides}; the first row is the baseline.
      seeds: every row runs with each of them.
    """

    config: str
    overrides: Sequence[str]
    rows: dict[str, Sequence[str]]
    seeds: Sequence[int]

    def __post_init__(self):
        """Raises a UserError if there is nothing to compare."""
        for name in ("rows", "seeds"):
            if not getattr(self, name):
                raise UserError(f"the study has no {name}: give it one or more")

    def configs(self) -> dict[tuple[str, int], Config]:
        """Returns {(row, seed): config}, all rows with the first seed first.

        Raises:
          UserError: an override that cannot be; all are parsed before anything runs.
        """
        return {
            (row, seed): load(
                self.config,
                [*self.overrides, "glue.tasks=()", *changes, f"seed={seed}"],
            )
            for seed in self.seeds
            for row, changes in self.rows.items()
        }


def run_study(study: Study, workdir: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Pretrains what is missing; returns {row: {seed: summary}}.

    A run lives in `workdir/<row>/seed<seed>`, so a stopped study goes on with the run
    it was in. All rows get their first seed before any gets its second: what a stopped
    study has can be compared. After each run study.json and study.md are written.

    Raises:
      UserError: see `run.run`.
      TrainingFailed: one or more runs did; raised when the others are done.
      Interrupted: a signal came; the run's state is saved.
    """
    configs = study.configs()
    results: dict[str, dict[int, dict[str, Any]]] = {row: {} for row in study.rows}
    failed = []
    for row, seed in configs:  # of a session before
        path = workdir / row / f"seed{seed}" / SUMMARY
        if path.exists():
            results[row][seed] = files.read_json(path, "delete its folder")
    for number, ((row, seed), config) in enumerate(configs.items(), start=1):
        logger.info(f"study: {row}, seed {seed} ({number} of {len(configs)})")
        folder = workdir / row / f"seed{seed}"
        try:
            run(config, folder)
        except TrainingFailed as error:
            failed.append(f"{row}, seed {seed}: {error}")
            logger.info(f"study: {failed[-1]}")
            continue
        results[row][seed] = files.read_json(folder / SUMMARY, "run again")
        files.write_json(workdir / "study.json", results)
        files.write_text(workdir / "study.md", table(study, results) + "\n")
    if failed:
        raise TrainingFailed(
            f"{len(failed)} of {len(configs)} runs failed, the others are in "
            f"{workdir / 'study.md'}: {'; '.join(failed)}"
        )
    return results


def table(study: Study, results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Returns a Markdown table of held-out losses and word order.

    Differences to the first row are paired: of runs with the same seed, which see the
    same data in the same order from the same weights. A row that averages its weights
    has a line for each average, too.
    """
    base_name = next(iter(study.rows))
    base = results.get(base_name, {})
    header = [
        "row",
        "seeds",
        "held-out loss, mean (lowest to highest)",
        "standard deviation",
        "difference to the first row, paired: mean (standard deviation)",
        "word order, mean (bigram model)",
        "tokens",
    ]
    lines = []
    for row, by_seed in results.items():
        tokens = max((summary["tokens"] for summary in by_seed.values()), default=0)
        for name, losses in _losses(row, by_seed).items():
            values = np.array(list(losses.values()))
            gaps = np.array(
                [
                    loss - base[seed]["held_out_loss"]
                    for seed, loss in losses.items()
                    if seed in base
                ]
            )
            gap = f"{gaps.mean():+.3f} ({_spread(gaps)})" if len(gaps) else "-"
            lines.append(
                [
                    name,
                    f"{len(values)}",
                    f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})",
                    _spread(values),
                    "-" if name == base_name else gap,
                    _word_order(by_seed) if name == row else "-",
                    f"{tokens:,}",
                ]
            )
    return markdown.table(header, lines)


def _losses(
    row: str, by_seed: dict[int, dict[str, Any]]
) -> dict[str, dict[int, float]]:
    """Returns {line of the table: {seed: held-out loss}}."""
    lines: dict[str, dict[int, float]] = {}
    for seed, summary in by_seed.items():
        lines.setdefault(row, {})[seed] = summary["held_out_loss"]
        for name, loss in summary["averages"].items():
            lines.setdefault(f"{row}, {name}", {})[seed] = loss
    return lines


def _word_order(by_seed: dict[int, dict[str, Any]]) -> str:
    """Returns the mean over seeds, of the model and of the bigram model."""
    scored = [s["word_order"] for s in by_seed.values() if s.get("word_order")]
    if not scored:
        return "-"
    model, bigram = (np.mean([s[key] for s in scored]) for key in ("model", "bigram"))
    return f"{model:.1f} % ({bigram:.1f} %)"


def _spread(values: np.ndarray) -> str:
    return f"{values.std(ddof=1):.3f}" if len(values) > 1 else "one seed"


def load_study(path: Path) -> Study:
    """Returns what `get_study()` of a Python file returns.

    Raises:
      UserError: the file is missing, or does not run.
    """
    try:
        study = runpy.run_path(str(path))["get_study"]()
    except Exception as error:  # whatever the user's file raises
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"--study={path} cannot be run: {what}") from error
    if not isinstance(study, Study):
        raise UserError(
            f"--study={path}: get_study() must return a cramjax.study.Study"
        )
    return study
