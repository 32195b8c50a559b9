"""Rows x seeds: what a change is worth, and how sure that is."""

import concurrent.futures
import dataclasses
import itertools
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cramjax import compare, figures, files
from cramjax.config import Config, load, module
from cramjax.errors import Interrupted, TrainingFailed, UserError, one_line
from cramjax.glue.evaluate import RESULTS as SCORES
from cramjax.model.flops import muon_flops_per_update, train_flops_per_token
from cramjax.page import Table, to_markdown
from cramjax.run import run
from cramjax.training import log as metrics_log
from cramjax.training.pretrain import METRICS, SUMMARY

logger = logging.getLogger(__name__)

RESULTS, TABLE, FIGURE = "study.json", "study.md", "study.png"
COMPARISON = "compare.html"
OUTPUT = "output.txt"  # of a run beside others, in its workdir
# Runs beside each other on a CPU have one thread each: more would get in their way.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

Cell = tuple[str, int]  # row and seed: a run
Results = dict[str, dict[int, dict[str, Any]]]  # {row: {seed: its pretrain.json}}


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
      config: path of the config that all rows start from.
      overrides: of all rows, "key=value".
      rows: {name: overrides}; the first row is the baseline.
      seeds: every row runs with each of them.
      comparisons: each {recipe: its rows, which differ in their budget}. The first
        recipe is the baseline of the others in `multipliers`, and its first row that
        of the comparison's other rows in the table.
    """

    config: str
    overrides: Sequence[str]
    rows: dict[str, Sequence[str]]
    seeds: Sequence[int]
    comparisons: Sequence[Mapping[str, Sequence[str]]] = ()

    def __post_init__(self):
        """Raises a UserError if there are no rows, or two have the same folder."""
        for name in ("rows", "seeds"):
            if not getattr(self, name):
                raise UserError(f"the study has no {name}: give it one or more")
        if len({*map(slug, self.rows)}) < len(self.rows):
            raise UserError(
                "two rows of the study have the same letters and digits, and so the "
                "same folder: rename one"
            )
        for row in itertools.chain(*map(_rows_of, self.comparisons)):
            if row not in self.rows:
                raise UserError(
                    f"the study's comparisons name {row!r}, which is no row"
                )

    def baseline(self, row: str) -> str:
        """Returns the row that a row is compared with."""
        for rows in map(_rows_of, self.comparisons):
            if row in rows:
                return rows[0]
        return next(iter(self.rows))

    def arguments(self, cell: Cell) -> list[str]:
        """Returns a run's overrides, as flags."""
        row, seed = cell
        # Rows may ask for tasks; the config's own are left out.
        given = ["glue.tasks=()", *self.overrides, *self.rows[row], f"seed={seed}"]
        return [f"--config.{change.removeprefix('--config.')}" for change in given]

    def configs(self) -> dict[Cell, Config]:
        """Returns the runs' configs, all rows with the first seed first.

        Raises:
          UserError: an override that cannot be; all are parsed before anything runs.
        """
        cells = [(row, seed) for seed in self.seeds for row in self.rows]
        return {cell: load(self.config, self.arguments(cell)) for cell in cells}


def _rows_of(comparison: Mapping[str, Sequence[str]]) -> list[str]:
    return list(itertools.chain(*comparison.values()))


def slug(row: str) -> str:
    """Returns a row's name as that of a folder: "masking 15 %" is masking-15."""
    return "-".join(re.findall(r"[\w.]+", row))


def _folder(workdir: Path, cell: Cell) -> Path:
    row, seed = cell
    return workdir / slug(row) / f"seed{seed}"


def run_study(study: Study, workdir: Path, at_once: int = 1) -> Results:
    """Runs what is missing; returns the summaries.

    A run lives in the folder ROW/seedN of the workdir, so a study that was stopped
    resumes its unfinished runs. All rows get their first seed before any gets its
    second, so what a stopped study has can be compared. After each run study.json,
    study.md and study.png are written, at the end compare.html of the first seeds.

    Args:
      study: what is run.
      workdir: the folder of its runs and tables.
      at_once: how many runs; above 1, each is a process with one thread, and its output
        goes to output.txt in its folder.

    Raises:
      UserError: see `run.run`.
      TrainingFailed: one or more runs failed; raised when the others are done.
      Interrupted: a signal came; the runs' states are saved.
    """
    configs = study.configs()
    folders = {cell: _folder(workdir, cell) for cell in configs}
    results: Results = {row: {} for row in study.rows}
    for (row, seed), folder in folders.items():  # of an earlier session
        if (folder / SUMMARY).exists():
            results[row][seed] = _read(folder)
    logger.info(f"study: {_progress(configs, results)}")
    failed = []
    for cell, error in _run_all(study, configs, folders, at_once):
        row, seed = cell
        if error:
            failed.append(f"{row}, seed {seed}: {error}")
            logger.info(f"study: {failed[-1]}")
            continue
        results[row][seed] = _read(folders[cell])
        files.write_json(workdir / RESULTS, results)
        files.write_text(workdir / TABLE, page(study, results) + "\n")
        with files.replacing(workdir / FIGURE) as file:
            _figure(study, results, workdir).savefig(file, dpi=120)
        logger.info(f"study: {_progress(configs, results)}")
    finished = [folders[row, min(found)] for row, found in results.items() if found]
    if finished:
        try:
            compare.write(finished, workdir / COMPARISON, workdir)
        except UserError as error:  # what failed is to be said all the same
            logger.warning(f"no {COMPARISON}: {error}")
    if failed:
        raise TrainingFailed(
            f"{len(failed)} of {len(configs)} runs failed, the others are in "
            f"{workdir / TABLE}: {'; '.join(failed)}"
        )
    return results


def _run_all(
    study: Study,
    configs: Mapping[Cell, Config],
    folders: Mapping[Cell, Path],
    at_once: int,
) -> Iterator[tuple[Cell, str]]:
    """Yields each run when it is done, with its error or ""."""
    if at_once == 1:
        for number, (cell, config) in enumerate(configs.items(), start=1):
            logger.info(
                f"study: {cell[0]}, seed {cell[1]} ({number} of {len(configs)})"
            )
            try:
                run(config, folders[cell])
            except TrainingFailed as error:
                yield cell, str(error)
            else:
                yield cell, ""
        return
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        runs = {
            pool.submit(_run_beside_others, study, cell, folder): cell
            for cell, folder in folders.items()
        }
        try:
            for done in concurrent.futures.as_completed(runs):
                yield runs[done], done.result()
        finally:  # those that wait for a worker, if one was interrupted
            pool.shutdown(wait=False, cancel_futures=True)


def _run_beside_others(study: Study, cell: Cell, folder: Path) -> str:
    """Runs the command in a process; returns its error or ""."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cramjax.main", f"--config={study.config}"]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}"
    with (folder / OUTPUT).open("a") as output:
        code = subprocess.run(
            [*command, *study.arguments(cell), f"--workdir={folder}"],
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
    """Returns a run's summary, and "scores": {title: score} of what was fine-tuned."""
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


def _progress(configs: Mapping[Cell, Config], results: Results) -> str:
    """Returns what is done, and what the rest takes at the speed so far."""
    done = [(row, seed) for row, seed in configs if seed in results[row]]
    left = [config for cell, config in configs.items() if cell not in done]
    text = f"{len(done)} of {len(configs)} runs are done"
    hours = sum(config.budget.hours for config in left)
    flops = sum(_model_flops(config) for config in left)
    if done and flops:
        summaries = [results[row][seed] for row, seed in done]
        seconds = sum(sum(summary["seconds"].values()) for summary in summaries)
        spent = sum(summary["model_flops"] for summary in summaries)
        hours += flops * seconds / spent / 3600
    if flops:
        text += f"; the others compute {flops:.2g} model FLOPs"
    if hours:
        text += f"; one after the other, they take about {hours:.2g} hours"
    return text


def _model_flops(config: Config) -> float:
    """Returns what a budget of tokens or FLOPs comes to; 0 for one of hours."""
    per_token = train_flops_per_token(config.model, config.objective.max_mask_rate)
    return config.budget.flops or config.budget.tokens * per_token


def total_flops(config: Config, summary: Mapping[str, Any]) -> float:
    """Returns a run's model FLOPs and Muon's."""
    muon = muon_flops_per_update(config.model) * (config.optimizer.name == "muon")
    return summary["model_flops"] + muon * summary["updates"]


def page(study: Study, results: Results) -> str:
    """Returns the table, and below it the lines of `multipliers`."""
    return to_markdown([table(study, results), *multipliers(study, results)])


def table(study: Study, results: Results) -> Table:
    """Returns a table of held-out losses, word order, FLOPs and scores.

    Differences to the baseline, see `Study.baseline`, are paired: of runs with the same
    seed, which see the same data in the same order from the same weights. A row that
    averages its weights has a line for each average, too.
    """
    configs = study.configs()
    runs = [summary for by_seed in results.values() for summary in by_seed.values()]
    scored = list(dict.fromkeys(title for s in runs for title in s.get("scores", {})))
    header = [
        "row",
        "seeds",
        "held-out loss, mean (lowest to highest)",
        "standard deviation",
        "difference to the baseline, paired: mean (standard deviation)",
        "word order, mean (bigram model)",
        "tokens",
        "FLOPs (with Muon's)",
        *scored,
    ]
    lines = []
    for row, by_seed in results.items():
        base = results.get(study.baseline(row), {})
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
                    "-" if name == study.baseline(row) else gap,
                    _word_order(of_row),
                    f"{tokens:,}",
                    _flops(configs[row, next(iter(losses))], of_row),
                    *(_score(of_row, title) for title in scored),
                ]
            )
    return Table(header, lines)


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


class Point(NamedTuple):
    """The means of a row over its seeds."""

    loss: float  # held out
    flops: float  # of the model
    total_flops: float  # with Muon's


def multipliers(study: Study, results: Results) -> list[str]:
    """Returns a line for each recipe but a comparison's first: how many FLOPs it saves.

    The logarithm of its FLOPs is interpolated linearly between its losses, to the
    lowest loss of the first recipe.
    """
    lines = []
    for curves in _curves(study, results):
        if not all(curves.values()):
            continue
        (base_name, base), *others = curves.items()
        lines += [_multiplier(base_name, min(base), *other) for other in others]
    return lines


def _multiplier(
    base_name: str, target: Point, name: str, points: Sequence[Point]
) -> str:
    """Returns the line of one recipe; its points are sorted by their losses."""
    losses = [point.loss for point in points]
    start = f"{name}, to reach {base_name}'s held-out loss of {target.loss:.3f}: "
    if not losses[0] <= target.loss <= losses[-1]:
        return f"{start}outside the range of its own losses."
    logs_Nx2 = np.log([point[1:] for point in points])
    needed = [np.exp(np.interp(target.loss, losses, log_N)) for log_N in logs_Nx2.T]
    return (
        f"{start}model FLOPs divided by {target.flops / needed[0]:.2f} (with "
        f"Muon's, by {target.total_flops / needed[1]:.2f})."
    )


def _curves(study: Study, results: Results) -> list[dict[str, list[Point]]]:
    """Returns {recipe: its points, lowest loss first} of what can be compared."""
    configs = study.configs()

    def point(row: str) -> Point:
        found = [
            (s["held_out_loss"], s["model_flops"], total_flops(configs[row, seed], s))
            for seed, s in results[row].items()
        ]
        return Point(*np.mean(found, axis=0).tolist())

    return [
        {
            name: sorted(point(row) for row in rows if results.get(row))
            for name, rows in comparison.items()
        }
        for comparison in study.comparisons
    ]


def _figure(study: Study, results: Results, workdir: Path) -> Any:
    """Returns losses over tokens and, if the study has comparisons, over FLOPs."""
    panels = 2 if study.comparisons else 1
    figure = figures.empty(3.3 * panels)
    over_tokens, *over_flops = figure.subplots(panels, squeeze=False)[:, 0]
    for number, (row, by_seed) in enumerate(results.items()):
        for seed in sorted(by_seed)[:1]:
            events = metrics_log.read(_folder(workdir, (row, seed)) / METRICS)
            tokens_N, loss_N = figures.curve(events, "tokens", "loss")
            dashes = ("-", "--", ":")[number // 10 % 3]  # colours return after ten rows
            over_tokens.plot(tokens_N, loss_N, dashes, label=row)
    over_tokens.set(xlabel="tokens", ylabel="training loss (nats), first seed")
    for axes in over_flops:
        curves = itertools.chain(*(c.items() for c in _curves(study, results)))
        for name, points in curves:
            flops = [point.total_flops for point in points]
            axes.plot(flops, [point.loss for point in points], "o-", label=name)
        axes.set(xlabel="FLOPs, with the optimizer's", ylabel="held-out loss (nats)")
    for axes in (over_tokens, *over_flops):
        axes.set_xscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
        axes.legend(frameon=False, fontsize="x-small", **beside)
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


def load_study(path: str) -> Study:
    """Returns what `get_study()` of a Python file returns.

    Args:
      path: of the file, or the name of one in configs/; what follows a colon is passed
        to the function.

    Raises:
      UserError: the file is missing, or does not run.
    """
    file, colon, argument = path.partition(":")
    try:
        get_study = module(file).get_study
        study = get_study(argument) if colon else get_study()
    except UserError as error:
        raise UserError(f"--study={error}") from error
    except Exception as error:  # whatever the user's file raises
        what = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"--study={path} cannot be run: {what}") from error
    if not isinstance(study, Study):
        raise UserError(
            f"--study={path}: get_study() must return a cramjax.study.Study"
        )
    return study
