"""Tries a new card in four parts of under ten minutes each; a table says how it went.

bash scripts/check_gpu.sh [--parts=a,b,c,d] [--out=FOLDER] [--config=configs/h200.py]
    [--data=FOLDER] [--tiny] [--config.KEY=VALUE ...]

  a: the device, and the tests marked gpu
  b: scripts/benchmark.py, beside PyTorch where it is installed
  c: measured speed over the estimate of scripts/plan.py, for three micro-batches
  d: a run of five minutes, pretrained and fine-tuned

It uses what is installed and fetches nothing. Every part is a process of its own: what
fails is named, and the others go on. The same command again repeats only those parts
that did not pass. FOLDER/check.json and FOLDER/check.md (runs/check unless given) hold
what was found, FOLDER/PART.log what was printed. The exit code is 1 if a part failed.

--data has texts/ to train on, and perhaps packed/ (their packed corpus) and glue_data/;
without it the run is on the embedded books and tasks. --tiny tries all of this on a
CPU, on a tiny model, in a minute. A factor that part c finds is what scripts/plan.py
uses for the card from then on (cramjax/planning/calibration.json).
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cramjax import arguments, files
from cramjax.errors import UserError
from cramjax.main import guarded
from cramjax.planning import calibration

ROOT = Path(__file__).parents[1]
LIMIT_S = 600.0  # of a part
MARGIN_S = 60.0  # of these, what the benchmark is not told of
RUN_HOURS = 5 / 60
# Of the tasks that fine-tune within minutes, the folders that their files are in.
TASKS = {"cola": "CoLA", "mrpc": "MRPC", "rte": "RTE", "stsb": "STS-B", "sst2": "SST-2"}
TINY = (
    "--config.model.width=32",
    "--config.model.ffn_width=64",
    "--config.model.layers=1",
    "--config.model.heads=2",
    "--config.model.vocab_size=256",
    "--config.micro_batch=4",
    "--config.batch.sequences=8",
    "--config.data.max_chars=300000",
)
# The embedded books are too small for the recipe's vocabulary; and the run is short.
EMBEDDED = (
    "--config.data.sources=('embedded:books',)",
    "--config.data.max_tokens_per_char=0",
    "--config.model.vocab_size=4096",
)
EMBEDDED_TASKS = ("intents", "acceptability")
SHORT = (
    "--config.guard.max_loss=0",
    "--config.checkpoint.every_minutes=2",
    "--config.validation.every_minutes=2",
    "--config.glue.trials=2",
    "--config.glue.max_train_rows=1000",
)


class StepFailed(Exception):
    """A process of a part failed; the message says which, and how it ended."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One part being run.

    Attributes:
      part: its letter.
      folder: for all results.
      flags: --config and its overrides.
      data: see the usage, None for what is embedded.
      tiny: on a CPU, in seconds.
      end: `time.monotonic()` when it has to be done.
    """

    part: str
    folder: Path
    flags: tuple[str, ...]
    data: Path | None
    tiny: bool
    end: float

    def run(self, what: str, command: Sequence[str], **environment: str) -> None:
        """Runs a Python program of this project; its output goes to the part's log.

        Raises:
          StepFailed: it ended with something else than 0, or was not done in time.
        """
        log = self.folder / f"{self.part}.log"
        if self.tiny:  # compiling takes most of a tiny program's time
            environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        with log.open("a") as file:
            print("$", *command, file=file, flush=True)
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": _python_path(), **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its own processes end with it
            )
        with process:
            try:
                code = process.wait(max(self.end - time.monotonic(), 1.0))
            except subprocess.TimeoutExpired as error:
                raise StepFailed(
                    f"{what}: not done in {LIMIT_S / 60:g} minutes, see {log.name}"
                ) from error
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if code:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise StepFailed(f"{what}: {how}: {_last_line(log)} (see {log.name})")

    def result(self, name: str) -> Path:
        """Returns where a process of this part leaves its numbers."""
        path = self.folder / f"{self.part}_{name}.json"
        path.unlink(missing_ok=True)
        return path


def device_and_tests(check: Check) -> dict[str, Any]:
    """Part a."""
    facts: dict[str, Any] = {}
    path, report = check.result("device"), check.folder / "a_tests.xml"
    report.unlink(missing_ok=True)
    failed = []
    tests = ["-m", "pytest", "tests/test_gpu.py", "-m", "gpu", "-rs"]
    # Warnings of versions that this project was not tested with are no failures.
    tests += ["-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}"]
    form = {"CRAMJAX_CPU_FORM": "1"} if check.tiny else {}
    for what, command, environment in (
        ("device", ["scripts/check_steps.py", "device", *_flags(check, path)], {}),
        ("tests", tests, form),
    ):
        try:
            check.run(what, command, **environment)
        except StepFailed as error:
            failed.append(str(error))
    if path.exists():
        facts |= json.loads(path.read_text())
    if report.exists():
        facts["tests"] = _tests(report)
        failed += [f"{name}: {why}" for name, why in facts["tests"]["failed"].items()]
    if failed:
        raise Failed("; ".join(failed), facts)
    return facts


def benchmark(check: Check) -> dict[str, Any]:
    """Part b."""
    path = check.result("benchmark")
    minutes = 0.05 if check.tiny else (LIMIT_S - MARGIN_S) / 60
    command = ["scripts/benchmark.py", *check.flags, f"--json={path}"]
    try:
        check.run("benchmark", [*command, f"--minutes={minutes:g}"])
    except StepFailed as error:
        raise Failed(str(error), _or_nothing(path)) from error
    return json.loads(path.read_text())


def estimate(check: Check) -> dict[str, Any]:
    """Part c: the estimate of a CPU, which has none, is from the formula's FLOPs."""
    path = check.result("speeds")
    check.run("speeds", ["scripts/check_steps.py", "speeds", *_flags(check, path)])
    facts = json.loads(path.read_text())
    measured = {int(n): x for n, x in facts["tokens_per_s"].items()}
    if check.tiny:
        estimated = dict.fromkeys(measured, facts["stand_in_tokens_per_s"])
        store = check.folder / calibration.PATH.name
    else:
        estimated, store = _planned(check, facts, list(measured)), calibration.PATH
    entry = compare(measured, estimated)
    calibration.write(facts["card"], entry, store)
    return {**facts, **entry, "written_to": str(store)}


def _planned(check: Check, facts: dict[str, Any], sizes: list[int]) -> dict[int, float]:
    """Returns what plan.py says without a factor."""
    path = check.result("plan")
    sizes_flag = ",".join(map(str, sizes))
    command = ["scripts/plan.py", *check.flags, f"--card={facts['card']}"]
    command += [f"--config.model.attention={facts['attention']}"]
    command += [f"--config.micro_batch={sizes[0]}"]
    check.run("plan", [*command, f"--micro_batches={sizes_flag}", f"--json={path}"])
    plan = json.loads(path.read_text())
    rows, factor = plan["micro_batches"], plan["calibration"] or 1.0
    return {n: rows[str(n)]["tokens_per_s"] / factor for n in sizes}


def compare(measured: dict[int, float], estimated: dict[int, float]) -> dict[str, Any]:
    """Returns measured over estimated tokens/s of each micro-batch, and their median.

    The median is the factor that plan.py corrects its estimates of the card by.
    """
    ratios = {size: measured[size] / estimated[size] for size in measured}
    return {
        "factor": median(ratios.values()),
        "micro_batches": {
            size: {
                "measured_tokens_per_s": measured[size],
                "estimated_tokens_per_s": estimated[size],
                "ratio": ratio,
            }
            for size, ratio in ratios.items()
        },
    }


def short_run(check: Check) -> dict[str, Any]:
    """Part d."""
    workdir = check.folder / "d_run"
    flags = [*check.flags, *SHORT, f"--config.budget.hours={RUN_HOURS}"]
    flags += [f"--config.data.dir={check.folder / 'packed'}"]
    tasks = EMBEDDED_TASKS[:1] if check.tiny else EMBEDDED_TASKS
    if check.data:
        flags += _given(check.data)
    else:
        flags += [*EMBEDDED, f"--config.glue.tasks={tasks}"]
    if check.tiny:
        flags += [*TINY, "--config.budget.hours=0", "--config.budget.tokens=5000"]
        flags += ["--config.validation.max_blocks=4", "--config.glue.trials=1"]
        flags += ["--config.glue.starts=('pretrained',)", "--config.glue.epochs=1"]
        flags += ["--config.glue.batch_size=8"]
        flags += ["--config.glue.learning_rates=(1e-3,)"]
        flags += ["--config.glue.max_train_rows=16"]
    command = ["-m", "cramjax.main", *flags, f"--workdir={workdir}"]
    try:
        check.run("run", command)
    except StepFailed as error:
        raise Failed(str(error), _or_nothing(workdir / "pretrain.json")) from error
    tasks = json.loads((workdir / "glue.json").read_text())["tasks"]
    return {
        **json.loads((workdir / "pretrain.json").read_text()),
        "scores": {
            name: {
                "metric": task["metric"],
                "majority": task["majority"],
                "median": task["starts"]["pretrained"]["median"],
            }
            for name, task in tasks.items()
        },
    }


def _given(data: Path) -> list[str]:
    """Returns flags for text, packed corpus and tasks of a folder."""
    glue = data / "glue_data"
    tasks = tuple(name for name, folder in TASKS.items() if (glue / folder).is_dir())
    flags = [f"--config.data.sources=('{data / 'texts' / '*'}',)"]
    flags += [f"--config.glue.tasks={tasks or EMBEDDED_TASKS}"]
    flags += [f"--config.glue.data_dir={glue}"]
    if (data / "packed").is_dir():
        flags += [f"--config.data.dir={data / 'packed'}"]
    return flags


PARTS: dict[str, tuple[str, Callable[[Check], dict[str, Any]]]] = {
    "a": ("device and tests", device_and_tests),
    "b": ("benchmark", benchmark),
    "c": ("measured over estimated speed", estimate),
    "d": ("a short run", short_run),
}


class Failed(Exception):
    """A part failed; it has found this much."""

    def __init__(self, why: str, facts: dict[str, Any]):
        """Keeps what was found."""
        super().__init__(why)
        self.facts = facts


def run_parts(
    names: Sequence[str],
    folder: Path,
    flags: Sequence[str],
    data: Path | None,
    tiny: bool,
) -> dict[str, dict[str, Any]]:
    """Runs the parts that have not passed; returns the results of all in the folder.

    Each is {"part", "title", "passed", "why" (it failed, or ""), "seconds", "facts",
    "asked" (the flags)}, and also in FOLDER/PART.json.

    Raises:
      UserError: the folder holds results of other flags.
    """
    asked = [*flags, f"--data={data or ''}", f"--tiny={tiny}"]
    folder.mkdir(parents=True, exist_ok=True)
    for result in results(folder).values():
        if result["asked"] != asked:
            raise UserError(
                f"--out={folder} holds a check with other flags "
                f"({' '.join(result['asked'])}): pass another folder"
            )
    for name in names:
        title, work = PARTS[name]
        if results(folder).get(name, {}).get("passed"):
            print(f"{name}: {title}: passed before", flush=True)
            continue
        print(f"{name}: {title} ...", flush=True)
        (folder / f"{name}.log").unlink(missing_ok=True)
        start = time.monotonic()
        check = Check(name, folder, tuple(flags), data, tiny, start + LIMIT_S)
        why, facts = _outcome(check, work)
        result = {
            "part": name,
            "title": title,
            "passed": not why,
            "why": why,
            "seconds": time.monotonic() - start,
            "facts": facts,
            "asked": asked,
        }
        files.write_json(folder / f"{name}.json", result)
        print(f"{name}: {'passed' if not why else f'FAILED: {why}'}", flush=True)
    return results(folder)


def _outcome(
    check: Check, work: Callable[[Check], dict[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """Returns why a part failed, "" if it did not, and what it found."""
    try:
        return "", work(check)
    except Failed as error:
        return str(error), error.facts
    except StepFailed as error:
        return str(error), {}
    except Exception as error:  # of any kind: the other parts are to be run
        traceback.print_exc()
        return f"{type(error).__name__}: {error}", {}


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the results that a folder holds."""
    found = {name: folder / f"{name}.json" for name in PARTS}
    return {n: json.loads(p.read_text()) for n, p in found.items() if p.exists()}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Returns the results as Markdown."""
    lines = ["| part | | took | found |", "|---|---|---|---|"]
    for name, result in found.items():
        state = "passed" if result["passed"] else f"**failed**: {result['why']}"
        facts = SUMMARIES[name](result["facts"]) if result["facts"] else []
        cells = (f"{name}: {result['title']}", state, f"{result['seconds']:.0f} s")
        text = "; ".join(facts).replace("|", "/")
        lines.append(f"| {' | '.join(cells)} | {text} |".replace("\n", " "))
    missing = [f"{name} ({PARTS[name][0]})" for name in PARTS if name not in found]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _show_a(facts: dict[str, Any]) -> list[str]:
    found, gpu, tests = [], facts.get("gpu") or {}, facts.get("tests")
    if "device" in facts:
        versions = facts["packages"]
        found = [
            f"{facts['device']}, {facts['card'] or 'not in device/cards.py'}",
            f"jax {versions['jax']}, jaxlib {versions['jaxlib']}, "
            f"cuDNN {facts['cudnn'] or 'none'}",
        ]
    if gpu:
        found.append(f"driver {gpu['driver']}, limit {gpu['power_limit_w']} W")
    if facts.get("memory_limit_bytes"):
        found.append(f"programs may take {facts['memory_limit_bytes'] / 1e9:.1f} GB")
    if tests:
        found.append(f"tests: {tests['passed']} passed, {len(tests['failed'])} failed")
        found += [f"skipped {n}: {why}" for n, why in tests["skipped"].items()]
    return found


def _show_b(facts: dict[str, Any]) -> list[str]:
    mfu, ratio = facts["mfu"], facts["ratio_to_pytorch"]
    why = dict(facts["left_out"]).get("PyTorch", "")
    why = (facts["pytorch"] or {}).get("skipped", why)
    best = max(facts["variants"], key=lambda row: row["tokens_per_s"])
    return [
        f"{facts['tokens_per_s']:,.0f} tokens/s"
        + (f", MFU {mfu:.1%}" if mfu else "")
        + f" ({best['attention']}, micro-batch {best['micro_batch']})",
        f"{ratio:.2f} times PyTorch" if ratio else f"PyTorch: left out, {why}",
    ]


def _show_c(facts: dict[str, Any]) -> list[str]:
    rows = facts["micro_batches"].items()
    return [
        f"factor {facts['factor']:.3f} for {facts['card']}",
        *(
            f"{n}: {row['measured_tokens_per_s']:,.0f} tokens/s measured, "
            f"{row['estimated_tokens_per_s']:,.0f} estimated"
            for n, row in rows
        ),
    ]


def _show_d(facts: dict[str, Any]) -> list[str]:
    mfu, kwh = facts["mfu"], facts["energy_kwh"]
    found = [
        f"{facts['tokens']:.3g} tokens in {facts['elapsed_s']:.0f} s, "
        f"{facts['tokens_per_s']:,.0f} tokens/s" + (f", MFU {mfu:.1%}" if mfu else ""),
        f"held-out loss {facts['held_out_loss']:.3f} (unigram entropy "
        f"{facts['unigram_entropy']:.3f})",
        f"first step after {facts['first_step_s']:.1f} s",
    ]
    if kwh is not None:
        found.append(f"{kwh:.3f} kWh")
    for name, score in facts.get("scores", {}).items():
        found.append(
            f"{name} {score['metric']} {score['median']:.1f} (most common answer "
            f"{score['majority']:.1f})"
        )
    return found


SUMMARIES = {"a": _show_a, "b": _show_b, "c": _show_c, "d": _show_d}


def _flags(check: Check, path: Path) -> list[str]:
    return [*check.flags, f"--json={path}", *(["--tiny"] if check.tiny else [])]


def _or_nothing(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("$")]
    return lines[-1][:200] if lines else "it said nothing"


def _tests(report: Path) -> dict[str, Any]:
    """Returns {"passed": how many, "failed", "skipped": {name: why}} of JUnit's XML."""
    found: dict[str, Any] = {"passed": 0, "failed": {}, "skipped": {}}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "")
        outcomes = {child.tag: child.get("message", "") for child in case}
        bad = outcomes.get("failure", outcomes.get("error"))
        if bad is not None:
            found["failed"][name] = bad.splitlines()[0][:200] if bad else "failed"
        elif "skipped" in outcomes:
            found["skipped"][name] = outcomes["skipped"]
        else:
            found["passed"] += 1
    return found


def check_card(argv: Sequence[str]) -> None:
    """Runs the parts, writes and prints the table.

    Raises:
      SystemExit: a part failed.
    """
    argv = [f"{a}=on" if a == "--tiny" else a for a in argv]
    values, flags = arguments.parse_flags(
        argv,
        {},
        {
            "parts": "of a,b,c,d",
            "out": "folder",
            "config": "the card's",
            "data": "folder with texts/, and perhaps packed/ and glue_data/",
            "tiny": "on a CPU",
        },
    )
    names = values["parts"].split(",") if values["parts"] else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        raise UserError(f"--parts={values['parts']}: {unknown[0]!r} is none of a,b,c,d")
    tiny = bool(values["tiny"])
    config = values["config"] or f"configs/{'quickstart' if tiny else 'h200'}.py"
    if not Path(config).is_file():
        raise UserError(f"--config={config}: no such file; pass e.g. configs/h200.py")
    data = Path(values["data"]).resolve() if values["data"] else None
    if data and not (data / "texts").is_dir():
        raise UserError(f"--data={data}: there is no folder {data / 'texts'}")
    folder = Path(values["out"] or "runs/check").resolve()
    flags = [f"--config={Path(config).resolve()}", *(TINY if tiny else ()), *flags]
    found = run_parts(names, folder, flags, data, tiny)
    text = table(found)
    files.write_json(folder / "check.json", found)
    files.write_text(folder / "check.md", text)
    print(f"\n{text}\n{folder / 'check.md'}")
    if failed := [n for n in names if not found[n]["passed"]]:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(guarded(check_card, sys.argv[1:], __doc__))
