"""Tries a new card in four parts of under ten minutes each; a table shows the results.

bash scripts/check_gpu.sh [--parts=a,b,c,d] [--out=FOLDER] [--config=configs/h200.py]
    [--data=FOLDER] [--tiny] [--config.KEY=VALUE ...]

  a: the device, and the tests marked gpu
  b: scripts/benchmark.py, beside PyTorch where it is installed
  c: measured speed over the estimate of scripts/plan.py, for three micro-batches
  d: the paper's recipe and that of configs/best.py (configs/studies/best.py), three
     minutes each, pretrained and fine-tuned

It uses what is installed and downloads nothing. Every part is a process of its own: a
part that fails is named, and the others go on. The same command again repeats only the
parts that did not pass. FOLDER/check.json and FOLDER/check.md (in runs/check by
default) hold the results, FOLDER/PART.log the output. The exit code is 1 if a part
failed.

--data has texts/ to train on, and optionally packed/ (their packed corpus) and
glue_data/; without it the run uses the embedded books and tasks. --tiny tries all of
this on a CPU, with a tiny model, within a minute. From then on scripts/plan.py corrects
its estimates for the card by the factor of part c (cramjax/calibration.json).
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

from check_table import table

from cramjax import files
from cramjax.config import find
from cramjax.errors import UserError
from cramjax.flags import parse_flags
from cramjax.main import guarded

Facts = dict[str, Any]

ROOT = Path(__file__).parents[1]
CALIBRATION = ROOT / "cramjax" / "calibration.json"
LIMIT_S = 600.0  # of a part
BENCHMARK_MINUTES = 9.0
RUN_HOURS = 3 / 60  # of each recipe
# The tasks that fine-tune within minutes, and their folders.
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
TINY_RUN = (
    "--config.budget.hours=0",
    "--config.budget.tokens=5000",
    "--config.validation.max_blocks=4",
    "--config.glue.trials=1",
    "--config.glue.starts=('pretrained',)",
    "--config.glue.epochs=1",
    "--config.glue.batch_size=8",
    "--config.glue.learning_rates=(1e-3,)",
    "--config.glue.max_train_rows=16",
)


class Failed(Exception):
    """A part failed; the message says where and how, `facts` is what it found."""

    def __init__(self, why: str, facts: Facts):
        """Keeps the facts."""
        super().__init__(why)
        self.facts = facts


@dataclasses.dataclass(frozen=True)
class Check:
    """One part that is being run."""

    part: str  # its letter
    folder: Path  # of all results
    flags: tuple[str, ...]  # --config and its overrides
    data: Path | None  # see the usage; None for the embedded data
    tiny: bool  # on a CPU, in seconds
    end: float  # `time.monotonic()` at which it has to be done

    def run(
        self,
        what: str,
        command: Sequence[str],
        result: Path | None = None,
        **environment: str,
    ) -> Facts:
        """Runs a Python program of this project; its output goes to the part's log.

        Returns:
          The content of the JSON file `result`; {} if there is none.

        Raises:
          Failed: its exit code was not 0, or it took too long.
        """
        log = self.folder / f"{self.part}.log"
        if self.tiny:  # compiling takes most of a tiny program's time
            cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", self.folder / "jit")
            environment |= {
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            }
        path = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        environment["PYTHONPATH"] = os.pathsep.join(path)
        with log.open("a") as file:
            print("$", *command, file=file, flush=True)
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its own processes end with it
            )
        with process:
            try:
                code = process.wait(max(self.end - time.monotonic(), 1.0))
            except subprocess.TimeoutExpired as error:
                raise Failed(
                    f"{what}: not done in {LIMIT_S / 60:g} minutes, see {log.name}",
                    _read(result),
                ) from error
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if code:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            lines = log.read_text(errors="replace").split("\n")
            printed = [x.strip() for x in lines if x.strip() and not x.startswith("$")]
            last = printed[-1][:200] if printed else "it printed nothing"
            raise Failed(f"{what}: {how}: {last} (see {log.name})", _read(result))
        return _read(result)

    def facts_of(self, name: str, command: Sequence[str]) -> Facts:
        """Runs a program of this project that has the flags --config and --json."""
        path = self.folder / f"{self.part}_{name}.json"
        path.unlink(missing_ok=True)
        return self.run(name, [*command, *self.flags, f"--json={path}"], path)

    def step(self, name: str) -> Facts:
        """Runs a step of scripts/check_steps.py."""
        tiny = ["--tiny"] if self.tiny else []
        return self.facts_of(name, ["scripts/check_steps.py", name, *tiny])


def _read(path: Path | None) -> Facts:
    return json.loads(path.read_text()) if path and path.exists() else {}


def device_and_tests(check: Check) -> Facts:
    """Part a."""
    failed, report = [], check.folder / "a_tests.xml"
    report.unlink(missing_ok=True)
    try:
        facts = check.step("device")
    except Failed as error:
        facts, failed = error.facts, [str(error)]
    tests = ["-m", "pytest", "tests/test_gpu.py", "-m", "gpu", "-rs"]
    # Warnings of library versions that this project was not tested with do not fail.
    tests += ["-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}"]
    cpu_form = {"CRAMJAX_CPU_FORM": "1"} if check.tiny else {}
    try:
        check.run("tests", tests, **cpu_form)
    except Failed as error:
        failed.append(str(error))
    if report.exists():
        facts["tests"] = _tests(report)
        failed += [f"{name}: {why}" for name, why in facts["tests"]["failed"].items()]
    if failed:
        raise Failed("; ".join(failed), facts)
    return facts


def _tests(report: Path) -> Facts:
    """Returns {"passed": count, "failed", "skipped": {name: why}} of a JUnit report."""
    found: Facts = {"passed": 0, "failed": {}, "skipped": {}}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        outcomes = {child.tag: child.get("message") or "failed" for child in case}
        bad = outcomes.get("failure", outcomes.get("error"))
        if bad:
            found["failed"][case.get("name")] = bad.splitlines()[0][:200]
        elif "skipped" in outcomes:
            found["skipped"][case.get("name")] = outcomes["skipped"]
        else:
            found["passed"] += 1
    return found


def benchmark(check: Check) -> Facts:
    """Part b."""
    minutes = 0.02 if check.tiny else BENCHMARK_MINUTES
    command = ["scripts/benchmark.py", f"--minutes={minutes:g}"]
    return check.facts_of("benchmark", command)


def estimate(check: Check) -> Facts:
    """Part c. A CPU, for which there is no estimate, gets one from the FLOPs formula.

    The median of measured over estimated tokens/s is the factor that plan.py corrects
    its estimates of the card by.
    """
    facts = check.step("speeds")
    measured = {int(n): x for n, x in facts["tokens_per_s"].items()}
    store = CALIBRATION
    if check.tiny:
        estimated = dict.fromkeys(measured, facts["stand_in_tokens_per_s"])
        store = check.folder / CALIBRATION.name
    else:
        command = ["scripts/plan.py", f"--card={facts['card']}"]
        command += [f"--micro_batches={','.join(map(str, measured))}"]
        # The last of equal flags counts, so these two go after the config's own.
        chosen = (f"--config.model.attention={facts['attention']}",)
        chosen += (f"--config.micro_batch={next(iter(measured))}",)
        planning = dataclasses.replace(check, flags=check.flags + chosen)
        plan = planning.facts_of("plan", command)
        rows, factor = plan["micro_batches"], plan["calibration"] or 1.0
        estimated = {n: rows[str(n)]["tokens_per_s"] / factor for n in measured}
    ratios = {size: measured[size] / estimated[size] for size in measured}
    entry = {
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
    files.write_json(store, _read(store) | {facts["card"]: entry})
    return {**facts, **entry, "written_to": str(store)}


def recipes(check: Check) -> Facts:
    """Part d: {row of the study: its summary and scores}."""
    workdir = check.folder / "d_runs"
    config, *overrides = check.flags
    flags = [*SHORT, f"--config.budget.hours={RUN_HOURS}"]
    flags += [f"--config.data.dir={check.folder / 'packed'}"]
    tasks = EMBEDDED_TASKS
    if check.data:
        glue, packed = check.data / "glue_data", check.data / "packed"
        given = [name for name, folder in TASKS.items() if (glue / folder).is_dir()]
        tasks = tuple(given) or EMBEDDED_TASKS
        flags += [f"--config.data.sources=('{check.data / 'texts' / '*'}',)"]
        flags += [f"--config.glue.data_dir={glue}"]
        flags += [f"--config.data.dir={packed}"] if packed.is_dir() else []
    else:
        flags += EMBEDDED
    flags += [f"--config.glue.tasks={tasks[:1] if check.tiny else tasks}"]
    flags += [*TINY_RUN] if check.tiny else []
    flags += overrides  # the last of equal flags counts
    study = f"--study=studies/best:{config.removeprefix('--config=')}"
    command = ["scripts/study.py", study, f"--workdir={workdir}", *flags]
    results = check.run("study", command, workdir / "study.json")
    return {row: by_seed["0"] for row, by_seed in results.items()}


PARTS: dict[str, tuple[str, Callable[[Check], Facts]]] = {
    "a": ("device and tests", device_and_tests),
    "b": ("benchmark", benchmark),
    "c": ("measured over estimated speed", estimate),
    "d": ("two recipes", recipes),
}


def run_parts(
    names: Sequence[str],
    folder: Path,
    flags: Sequence[str],
    data: Path | None,
    tiny: bool,
) -> dict[str, Facts]:
    """Runs the parts without a passing result; returns the results of all parts.

    Each is {"part", "title", "passed", "why" (it failed, or ""), "seconds", "facts",
    "asked" (the flags)}, and is also in FOLDER/PART.json.

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
        why = ""
        try:
            facts = work(Check(name, folder, tuple(flags), data, tiny, start + LIMIT_S))
        except Failed as error:
            why, facts = str(error), error.facts
        except Exception as error:  # the other parts must still run
            traceback.print_exc()
            why, facts = f"{type(error).__name__}: {error}", {}
        result = {"part": name, "title": title, "passed": not why, "why": why}
        result |= {"seconds": time.monotonic() - start, "facts": facts, "asked": asked}
        files.write_json(folder / f"{name}.json", result)
        print(f"{name}: {f'FAILED: {why}' if why else 'passed'}", flush=True)
    return results(folder)


def results(folder: Path) -> dict[str, Facts]:
    """Returns the results that a folder holds."""
    found = {name: _read(folder / f"{name}.json") for name in PARTS}
    return {name: result for name, result in found.items() if result}


def check_card(argv: Sequence[str]) -> None:
    """Runs the parts, writes and prints the table.

    Raises:
      SystemExit: a part failed.
    """
    optional = ["parts", "out", "config", "data"]
    values, flags = parse_flags(argv, {}, optional, switches=["tiny"])
    names = values["parts"].split(",") if values["parts"] else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        raise UserError(f"--parts={values['parts']}: {unknown[0]!r} is none of a,b,c,d")
    tiny = bool(values["tiny"])
    try:
        config = find(values["config"] or ("small" if tiny else "h200"))
    except UserError as error:
        raise UserError(f"--config={error}") from error
    data = Path(values["data"]).resolve() if values["data"] else None
    if data and not (data / "texts").is_dir():
        raise UserError(f"--data={data}: there is no folder {data / 'texts'}")
    folder = Path(values["out"] or "runs/check").resolve()
    flags = [f"--config={config.resolve()}", *(TINY if tiny else ()), *flags]
    found = run_parts(names, folder, flags, data, tiny)
    text = table(found, {name: title for name, (title, _) in PARTS.items()})
    files.write_json(folder / "check.json", found)
    files.write_text(folder / "check.md", text)
    print(f"\n{text}\n{folder / 'check.md'}")
    if failed := [n for n in names if not found[n]["passed"]]:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(guarded(check_card, sys.argv[1:], __doc__))
