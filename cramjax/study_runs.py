"""Runs what a study compares, and writes its tables."""

import concurrent.futures
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cramjax import compare, files
from cramjax.config import Config
from cramjax.errors import Interrupted, TrainingFailed, UserError
from cramjax.glue.evaluate import RESULTS as SCORES
from cramjax.model.flops import train_flops_per_token
from cramjax.run import run
from cramjax.study import Cell, Results, Study, figure, page, run_folder
from cramjax.training.pretrain import SUMMARY

logger = logging.getLogger(__name__)

RESULTS, TABLE, FIGURE = "study.json", "study.md", "study.png"
COMPARISON = "compare.html"
OUTPUT = "output.txt"  # of a run beside others, in its workdir
# Runs beside each other on a CPU have one thread each: more would get in their way.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


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
    folders = {cell: run_folder(workdir, cell) for cell in configs}
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
            figure(study, results, workdir).savefig(file, dpi=120)
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
    if code < 0:
        last = [f"ended by signal {-code}; see {folder / OUTPUT}:", *last]
    return (" ".join(last) or f"exit code {code}") if code else ""


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
