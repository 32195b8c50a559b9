"""Rows x seeds: what a change is worth, and how sure that is."""

import concurrent.futures
import dataclasses
import logging
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramjax import files, markdown
from cramjax.config import Config, load
from cramjax.errors import Interrupted, TrainingFailed, UserError
from cramjax.glue.evaluate import RESULTS as SCORES
from cramjax.model.flops import muon_flops_per_update, train_flops_per_token
from cramjax.run import run
from cramjax.training.pretrain import SUMMARY

logger = logging.getLogger(__name__)

RESULTS, TABLE, FIGURE = "study.json", "study.md", "study.png"
OUTPUT = "output.txt"  # of a run beside others, in its workdir
# Runs beside each other on a CPU have one thread each: more would get in their way.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

Run = tuple[str, int]  # row and seed
Results = dict[str, dict[int, dict[str, Any]]]  # {row: {seed: its pretrain.json}}


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
      config: path of the config that all rows start from.
      overrides: of all rows, "key=value".
      rows: {name: overrides}; the first row is the baseline.
      seeds: every row runs with each of them.
      curves: {recipe: its rows, which differ in their budget}; the first recipe is the
        baseline of `multipliers`, and the losses are drawn over FLOPs.
    """

    config: str
    overrides: Sequence[str]
    rows: dict[str, Sequence[str]]
    seeds: Sequence[int]
    curves: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Raises a UserError if rows cannot be told apart, or there are none."""
        for name in ("rows", "seeds"):
            if not getattr(self, name):
                raise UserError(f"the study has no {name}: give it one or more")
        if len({*map(slug, self.rows)}) < len(self.rows):
            raise UserError(
                "two rows of the study have the same letters and digits, and so the "
                "same folder: rename one"
            )
        for row in (row for rows in self.curves.values() for row in rows):
            if row not in self.rows:
                raise UserError(f"the study's curves name {row!r}, which is no row")

    def arguments(self, run: Run) -> list[str]:
        """Returns a run's overrides."""
        row, seed = run
        # Rows may ask for tasks; the config's own are left out.
        return ["glue.tasks=()", *self.overrides, *self.rows[row], f"seed={seed}"]

    def configs(self) -> dict[Run, Config]:
        """Returns the runs' configs, all rows with the first seed first.

        Raises:
          UserError: an override that cannot be; all are parsed before anything runs.
        """
        runs = [(row, seed) for seed in self.seeds for row in self.rows]
        return {run: load(self.config, self.arguments(run)) for run in runs}


def slug(row: str) -> str:
    """Returns a row's name as that of a folder: "masking 15 %" is masking-15."""
    return "-".join(re.findall(r"[\w.]+", row))


def run_study(study: Study, workdir: Path, jobs: int = 1) -> Results:
    """Runs what is missing; returns the summaries.

    A run lives in the folder ROW/seedN of the workdir, so a stopped study goes on with
    the runs it was in. All rows get their first seed before any gets its second: what a
    stopped study has can be compared. After each run study.json, study.md and, with
    curves, study.png are written.

    Args:
      study: what is run.
      workdir: the folder of its runs and tables.
      jobs: runs at once, above 1 each in a process of its own, whose output goes to
        output.txt in its folder.

    Raises:
      UserError: see `run.run`.
      TrainingFailed: one or more runs did; raised when the others are done.
      Interrupted: a signal came; the runs' states are saved.
    """
    configs = study.configs()
    folders = {(row, s): workdir / slug(row) / f"seed{s}" for row, s in configs}
    results: Results = {row: {} for row in study.rows}
    for (row, seed), folder in folders.items():  # of a session before
        if (folder / SUMMARY).exists():
            results[row][seed] = _read(folder)
    logger.info(f"study: {_plan(configs, results)}")
    failed = []
    for run_, error in _run_all(study, configs, folders, jobs):
        row, seed = run_
        if error:
            failed.append(f"{row}, seed {seed}: {error}")
            logger.info(f"study: {failed[-1]}")
            continue
        results[row][seed] = _read(folders[run_])
        files.write_json(workdir / RESULTS, results)
        files.write_text(workdir / TABLE, page(study, results) + "\n")
        if study.curves:
            _figure(study, results).savefig(workdir / FIGURE, dpi=120)
        logger.info(f"study: {_plan(configs, results)}")
    if failed:
        raise TrainingFailed(
            f"{len(failed)} of {len(configs)} runs failed, the others are in "
            f"{workdir / TABLE}: {'; '.join(failed)}"
        )
    return results


def _run_all(
    study: Study, configs: Mapping[Run, Config], folders: Mapping[Run, Path], jobs: int
) -> Iterator[tuple[Run, str]]:
    """Yields each run when it is done, with its error or ""."""
    if jobs == 1:
        for number, (run_, config) in enumerate(configs.items(), start=1):
            logger.info(
                f"study: {run_[0]}, seed {run_[1]} ({number} of {len(configs)})"
            )
            try:
                run(config, folders[run_])
            except TrainingFailed as error:
                yield run_, str(error)
            else:
                yield run_, ""
        return
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        runs = {
            pool.submit(_run_beside_others, study, run_, folders[run_]): run_
            for run_ in configs
        }
        try:
            for done in concurrent.futures.as_completed(runs):
                yield runs[done], done.result()
        finally:  # those that wait for a worker, if one was interrupted
            pool.shutdown(wait=False, cancel_futures=True)


def _run_beside_others(study: Study, run: Run, folder: Path) -> str:
    """Runs the command in a process; returns its error or ""."""
    folder.mkdir(parents=True, exist_ok=True)
    overrides = [f"--config.{override}" for override in study.arguments(run)]
    command = [sys.executable, "-m", "cramjax.main", f"--config={study.config}"]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}"
    with (folder / OUTPUT).open("a") as output:
        code = subprocess.run(
            [*command, *overrides, f"--workdir={folder}"],
            check=False,
            stdout=output,
            stderr=output,
            env=os.environ | {"XLA_FLAGS": flags.strip()},
        ).returncode
    if code > 128:
        raise Interrupted(f"interrupted: {folder} is saved", code - 128)
    last = (folder / OUTPUT).read_text().splitlines()[-1:]
    return " ".join(last) if code else ""


def _read(folder: Path) -> dict[str, Any]:
    """Returns a run's summary, with {title: its score} of what was fine-tuned."""
    summary = files.read_json(folder / SUMMARY, "delete its folder")
    scores = {}
    if (folder / SCORES).exists():
        for entry in files.read_json(folder / SCORES, "delete it")["tasks"].values():
            for start, scored in entry["starts"].items():
                scores[f"{entry['title']}, {start}"] = scored["median"]
            scores[f"{entry['title']}, bag of words"] = entry["bag_of_words"][
                entry["metric"]
            ]
    return summary | {"scores": scores}


def _plan(configs: Mapping[Run, Config], results: Results) -> str:
    """Returns what is done, and what the rest takes at the speed so far."""
    flops = {
        run: _model_flops(config)
        for run, config in configs.items()
        if not config.budget.hours
    }
    done = [run for run in configs if run[1] in results[run[0]]]
    left = [run for run in configs if run not in done]
    text = f"{len(done)} of {len(configs)} runs are done"
    hours = sum(configs[run].budget.hours for run in left)
    text += f"; the others take {hours:.2g} hours" if hours else ""
    if rest := sum(flops.get(run, 0) for run in left):
        text += f"; the others take {rest:.2g} model FLOPs"
        seconds = sum(sum(results[r][s]["seconds"].values()) for r, s in done)
        if spent := sum(flops.get(run, 0) for run in done):
            text += f", {seconds * rest / spent / 60:,.0f} minutes of a job"
    return text


def _model_flops(config: Config) -> float:
    """Returns what a budget of tokens or FLOPs comes to."""
    per_token = train_flops_per_token(config.model, config.objective.max_mask_rate)
    return config.budget.flops or config.budget.tokens * per_token


def total_flops(config: Config, summary: Mapping[str, Any]) -> float:
    """Returns a run's model FLOPs and Muon's."""
    muon = muon_flops_per_update(config.model) * (config.optimizer.name == "muon")
    return summary["model_flops"] + muon * summary["updates"]


def page(study: Study, results: Results) -> str:
    """Returns the table, and what the curves say."""
    return "\n\n".join([table(study, results), *multipliers(study, results)])


def table(study: Study, results: Results) -> str:
    """Returns a Markdown table of held-out losses, word order, FLOPs and scores.

    Differences to the first row are paired: of runs with the same seed, which see the
    same data in the same order from the same weights. A row that averages its weights
    has a line for each average, too.
    """
    configs = study.configs()
    base_name = next(iter(study.rows))
    base = results.get(base_name, {})
    runs = [summary for by_seed in results.values() for summary in by_seed.values()]
    scored = list(dict.fromkeys(title for s in runs for title in s.get("scores", {})))
    header = [
        "row",
        "seeds",
        "held-out loss, mean (lowest to highest)",
        "standard deviation",
        "difference to the first row, paired: mean (standard deviation)",
        "word order, mean (bigram model)",
        "tokens",
        "FLOPs (with Muon's)",
        *scored,
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
            of_row = [by_seed[seed] for seed in losses] if name == row else []
            lines.append(
                [
                    name,
                    f"{len(values)}",
                    f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})",
                    _spread(values),
                    "-" if name == base_name else gap,
                    _word_order(of_row),
                    f"{tokens:,}",
                    _flops(configs[row, next(iter(losses))], of_row),
                    *(_score(of_row, title) for title in scored),
                ]
            )
    return markdown.table(header, lines)


def _flops(config: Config, runs: Sequence[Mapping[str, Any]]) -> str:
    if not runs:
        return "-"
    model, total = (
        np.mean(values)
        for values in zip(
            *((s["model_flops"], total_flops(config, s)) for s in runs), strict=True
        )
    )
    return f"{model:.2e}" + (f" ({total:.2e})" if total > model else "")


def _score(runs: Sequence[Mapping[str, Any]], title: str) -> str:
    found = [s["scores"][title] for s in runs if title in s.get("scores", {})]
    return f"{np.mean(found):.1f}" if found else "-"


def multipliers(study: Study, results: Results) -> list[str]:
    """Returns a line for each recipe but the first: its advantage in FLOPs.

    That is how many times fewer FLOPs it needs for the baseline's loss at its largest
    budget: the logarithm of its FLOPs is interpolated linearly between its losses.
    """
    base, *others = _points(study, results).items() if study.curves else [()]
    if not (base and base[1]):
        return []
    *_, (loss, *flops) = sorted(base[1], reverse=True)
    lines = []
    for name, points in others:
        points = sorted(points)
        losses = [point[0] for point in points]
        if not points or not losses[0] <= loss <= losses[-1]:
            lines.append(
                f"{name}: {base[0]}'s held-out loss of {loss:.3f} is not between its "
                "own, which would say what it takes."
            )
            continue
        needed = [
            math.exp(np.interp(loss, losses, np.log([point[kind] for point in points])))
            for kind in (1, 2)
        ]
        lines.append(
            f"{name}: reaches {base[0]}'s held-out loss of {loss:.3f} with "
            f"{flops[0] / needed[0]:.2f} times fewer model FLOPs "
            f"({flops[1] / needed[1]:.2f} with Muon's)."
        )
    return lines


def _points(
    study: Study, results: Results
) -> dict[str, list[tuple[float, float, float]]]:
    """Returns {recipe: (loss, model FLOPs, FLOPs with Muon's) of its rows, means}."""
    configs = study.configs()
    points: dict[str, list[tuple[float, float, float]]] = {}
    for name, rows in study.curves.items():
        points[name] = []
        for row in rows:
            found = [
                (s["held_out_loss"], s["model_flops"], total_flops(configs[row, i], s))
                for i, s in results.get(row, {}).items()
            ]
            if found:
                points[name].append(tuple(np.mean(found, axis=0).tolist()))
    return points


def _figure(study: Study, results: Results) -> Any:
    """Returns the held-out losses over FLOPs, a curve for each recipe."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in _points(study, results).items():
        points = sorted(points, key=lambda point: point[2])
        flops, losses = [p[2] for p in points], [p[0] for p in points]
        axes.plot(flops, losses, "o-", label=name)
    axes.set(xlabel="FLOPs, with the optimizer's", ylabel="held-out loss (nats)")
    axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


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


def _word_order(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the mean over runs, of the model and of the bigram model."""
    scored = [s["word_order"] for s in runs if s.get("word_order")]
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
