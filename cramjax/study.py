"""Rows x seeds: what a change is worth, and how sure that is."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cramjax import figures
from cramjax.config import Config, from_file, load
from cramjax.errors import UserError
from cramjax.model.flops import muon_flops_per_update
from cramjax.page import Table, to_markdown
from cramjax.training import log as metrics_log
from cramjax.training.pretrain import METRICS

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


def run_folder(workdir: Path, cell: Cell) -> Path:
    """Returns the workdir of a run, in that of the study."""
    row, seed = cell
    return workdir / slug(row) / f"seed{seed}"


def total_flops(config: Config, summary: Mapping[str, Any]) -> float:
    """Returns a run's model FLOPs and Muon's."""
    muon = muon_flops_per_update(config.model) * (config.optimizer.name == "muon")
    return summary["model_flops"] + muon * summary["updates"]


def page(study: Study, results: Results) -> str:
    """Returns the table, and below it the lines of `multipliers`."""
    return to_markdown([table(study, results), *multipliers(study, results)])


def table(study: Study, results: Results) -> Table:
    """Returns a table of held-out losses, word order, FLOPs and scores.

    Differences from the baseline, see `Study.baseline`, are paired: between runs with
    the same seed, which see the same data in the same order from the same weights. A
    row that averages its weights has a line for each average, too.
    """
    configs = study.configs()
    runs = [summary for by_seed in results.values() for summary in by_seed.values()]
    scored = list(dict.fromkeys(title for s in runs for title in s.get("scores", {})))
    header = [
        "row",
        "seeds",
        "held-out loss, mean (lowest to highest)",
        "standard deviation",
        "difference from the baseline, paired: mean (standard deviation)",
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


def figure(study: Study, results: Results, workdir: Path) -> Any:
    """Returns losses over tokens and, if the study has comparisons, over FLOPs."""
    panels = 2 if study.comparisons else 1
    drawn = figures.empty(3.3 * panels)
    over_tokens, *over_flops = drawn.subplots(panels, squeeze=False)[:, 0]
    for number, (row, by_seed) in enumerate(results.items()):
        for seed in sorted(by_seed)[:1]:
            events = metrics_log.read(run_folder(workdir, (row, seed)) / METRICS)
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
    return drawn


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
    """Returns what `get_study()` of a Python file returns, see `config.from_file`."""
    try:
        return from_file(path, "get_study", Study)
    except UserError as error:
        raise UserError(f"--study={error}") from error
