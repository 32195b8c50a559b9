"""Breaks a tiny run on purpose, starts it again until it ends, and compares.

A case is a few faults in the order of their stages. Each one strikes an attempt: a
process with the same command in the same folders. Afterwards the command runs
undisturbed, and what the run has made must equal, to the bit, what an undisturbed one
(the reference) has made.
"""

import collections
import contextlib
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

OVERRIDES = """
seed=1 micro_batch=4 model.width=32 model.ffn_width=64 model.layers=1 model.heads=2
model.vocab_size=256 data.max_chars=400000 batch.sequences=12 budget.tokens=12800
log.every_steps=10 validation.max_blocks=6 validation.every_minutes=0.02
checkpoint.every_minutes=0.01 glue.tasks=('intents10',) glue.starts=('pretrained',)
glue.max_train_rows=32 glue.trials=2 glue.trials_at_once=1 glue.epochs=1
glue.learning_rates=(1e-3,) glue.head_width=16
""".split()  # noqa: SIM905
# In their order, but a checkpoint is written in the midst of training.
STAGES = "preparing", "compiling", "training", "checkpoint", "fine-tuning", "report"
STAGE_OF_FILES = {
    "^/data": "preparing",
    "/checkpoints": "checkpoint",
    r"/(config|corpus|tokenizer)\.json|^/run$": "compiling",
    r"/metrics|/pretrain|\.safetensors": "training",
    r"/predictions|/finetune|/glue\.json": "fine-tuning",
    "": "report",
}
# It may be missing, or forbidden as in some containers.
_TRIED = [shutil.which("strace") or "false", "-o", os.devnull, "true"]
STRACE = subprocess.run(_TRIED, check=False).returncode == 0
PATIENCE_S = 240  # a longer attempt hangs
WRITES = ("write", "writev", "fsync", "rename", "mkdir")  # system calls
SIGNALS = {
    "KILL": (signal.SIGKILL,),
    "TERM": (signal.SIGTERM,),
    "INT twice": (signal.SIGINT, signal.SIGINT),
    "closed pipe, INT": (signal.SIGINT,),  # as of `command | tee`
    "closed terminal": (signal.SIGHUP,),  # which the system sends
    "closed pipe": (),
    "STOP, CONT": (signal.SIGSTOP, signal.SIGCONT),
}
ERRORS = ("EIO", "ENOSPC", "EROFS", "EDQUOT")
WHOLE = ("slow disk", "small disk", "two on a workdir", "two on a corpus")  # no stage


class Fault(NamedTuple):
    """What happens to an attempt in a stage; the seed draws the moment or the write."""

    kind: str  # of SIGNALS, ERRORS or WHOLE
    stage: str
    seed: str


class Broken(Exception):
    """The invariant does not hold: "lost", "wrong" or "traceback", and why."""


class Job:
    """The command, the programs it has compiled, and the reference.

    Attributes:
      reference: the folder of an undisturbed run; others are equal to it.
      seconds: {stage: how long it took}.
      calls: {(stage, system call): {kind of file: [number of the call in its thread]}}.
    """

    def __init__(self, folder: Path):
        """Runs the reference, after a run that compiles its programs."""
        self.environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        assert Attempt(self, folder / "first").ended() == 0
        self.reference, log = folder / "reference", folder / "reference.strace"
        prefix = strace(log, WRITES) if STRACE else ()
        attempt, began = Attempt(self, self.reference, prefix), {}
        for stage in STAGES:
            attempt.wait_for(lambda stage=stage: attempt.has_begun(stage))
            began[stage] = time.time()
        assert attempt.ended() == 0, attempt.text()
        del began["checkpoint"]  # it lasts a moment
        ends = [*began.values(), time.time()][1:]
        self.seconds = {x: end - began[x] for x, end in zip(began, ends, strict=True)}
        self.seconds["checkpoint"] = 0.1
        self.calls = collections.defaultdict(lambda: collections.defaultdict(list))
        numbers: collections.Counter[tuple[str, str]] = collections.Counter()
        for thread, call, path in traced(log):
            numbers[thread, call] += 1
            if path.startswith(f"{self.reference}/"):
                name = path.removeprefix(str(self.reference))
                stage = next(y for x, y in STAGE_OF_FILES.items() if re.search(x, name))
                kind = re.sub(r"[0-9a-f]{12,}|\d+", "*", name)
                self.calls[stage, call][kind].append(numbers[thread, call])


def strace(log: Path, calls, *options: str) -> list[str]:
    """Returns the beginning of a command under strace; each thread has its own log."""
    only = ("-e", f"trace={','.join(calls)}", "-s", "0", "-y", "-o", str(log))
    return ["strace", "-ff", "--seccomp-bpf", *only, *options]


def traced(log: Path, only: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields (thread, system call, path) of the calls whose lines have `only`."""
    for path in sorted(log.parent.glob(f"{log.name}.*")):
        for line in path.read_text(errors="replace").splitlines():
            match = re.match(r'(\w+)\((?:\d+<|")?([^>"]*)', line)
            if match and only in line:
                yield path.suffix, *match.groups()


class Attempt:
    """A process with the command; its output is in a file."""

    def __init__(self, job: Job, place: Path, prefix=(), run="run", reader=None):
        """Starts it; its output may go through a "pipe" or a "terminal" first."""
        place.mkdir(exist_ok=True)
        self.workdir, self.since = place / run, time.time()
        self.file = place.with_name(f"{place.name}-{run}-{self.since}.txt")
        self.reader, self.note, self.struck = None, "", True
        folders = (f"--config.data.dir={place}/data", f"--workdir={self.workdir}")
        keys = (f"--config.{override}" for override in OVERRIDES)
        command = (sys.executable, "-m", "cramjax.main", "--config=small", *keys)
        with self.file.open("wb") as file:
            streams = {"stdout": file, "stderr": file, "stdin": subprocess.DEVNULL}
            if reader == "pipe":
                self.reader, streams["stdout"] = os.pipe()
            if reader == "terminal":
                self.reader, terminal = pty.openpty()
                streams, prefix = dict.fromkeys(streams, terminal), ("setsid", "--ctty")
            # A process started under `nohup` ignores SIGHUP, and so would its children.
            before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
            self.process = subprocess.Popen(
                [*prefix, *command, *folders],
                env=job.environment,
                start_new_session=reader != "terminal",
                **streams,
            )
            signal.signal(signal.SIGHUP, before)
        if reader:
            os.close(streams["stdout"])

    def text(self) -> str:
        """Returns the output so far."""
        with contextlib.suppress(OSError), self.file.open("ab") as file:
            while self.reader and select.select([self.reader], [], [], 0)[0]:
                if not (new := os.read(self.reader, 1 << 16)):  # a terminal raises
                    break
                file.write(new)
        return self.file.read_text(errors="replace")

    def last_line(self) -> dict:
        """Returns the last line of metrics.jsonl."""
        lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])

    def has_begun(self, stage: str) -> bool:
        """Returns whether this attempt has come to a stage."""
        if stage == "preparing":
            return "workdir: " in self.text()
        if stage == "compiling":
            return (self.workdir / "corpus.json").stat().st_mtime > self.since
        if stage == "training":
            last = self.last_line()
            return last["time"] > self.since and last.get("event") != "resumed"
        if stage == "checkpoint":
            return any(self.workdir.glob("checkpoints/*-tmp"))
        name = "pretrain.json" if stage == "fine-tuning" else "glue.md"
        return (self.workdir / name).exists()

    def wait_for(self, condition=lambda: False) -> bool:
        """Returns whether it comes true before the process ends."""
        while self.process.poll() is None and time.time() < self.since + PATIENCE_S:
            with contextlib.suppress(OSError, IndexError, ValueError):  # no such file
                if condition():
                    return True
            self.text()  # a process waits if nobody reads its output
            time.sleep(0.005)
        return False

    def ended(self) -> int:
        """Waits for the end; returns the exit code, or raises `Broken`."""
        self.wait_for()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise Broken("lost", f"hangs: {self.text()[-1000:]}")
        text, code = self.text(), self.process.returncode
        # TensorStore prints tracebacks of its own when Orbax no longer waits for it.
        if re.search(r'File ".*/cramjax/|Fatal Python error', text):
            raise Broken("traceback", f"exit {code}: {text[-3000:]}")
        if code == 2 and len(re.findall("^error: ", text, re.M)) != 1:
            raise Broken("lost", f"exit 2 without one line: {text[-1000:]}")
        if "stopped by" in text:
            last = self.last_line()
            saved = (self.workdir / "checkpoints" / str(last["step"])).exists()
            finished = (
                last.get("progress", 0) >= 1
            )  # there is nothing left to go on with
            if not saved or (last.get("event") != "stopped" and not finished):
                raise Broken("lost", f"not saved when it stopped: {last}")
        return code


def strike(job: Job, place: Path, fault: Fault) -> Attempt:
    """Returns an attempt that has met the fault, if it is `struck`."""
    draw, kind, log = random.Random(fault.seed), fault.kind, place / "strace"
    place.mkdir(exist_ok=True)
    if kind in SIGNALS:
        reader = re.match("(?:closed )?(pipe|terminal)?", kind)[1]
        attempt = Attempt(job, place, reader=reader)
        began = attempt.wait_for(lambda: attempt.has_begun(fault.stage))
        time.sleep(draw.random() * job.seconds[fault.stage])
        attempt.struck = began and attempt.process.poll() is None
        if reader:
            os.close(attempt.reader)
            attempt.reader = None
        for number in SIGNALS[kind] if attempt.struck and reader != "terminal" else ():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                # Ctrl-C reaches the whole group.
                send = os.killpg if number == signal.SIGINT else os.kill
                send(attempt.process.pid, number)
            time.sleep(draw.random() / 2)
        return attempt
    if kind in ERRORS:
        call = draw.choice([c for c in WRITES if (fault.stage, c) in job.calls])
        numbers = job.calls[fault.stage, call]
        number = draw.choice(numbers[draw.choice(sorted(numbers))])
        # Without `write` a run says nothing.
        onwards = kind in ("EIO", "EROFS") and call != "write" and draw.random() < 0.5
        inject = f"inject={call}:error={kind}:when={number}{'+' * onwards}"
        for old in place.glob(f"{log.name}.*"):
            old.unlink()
        attempt = Attempt(job, place, strace(log, [call], "-e", inject))
        attempt.wait_for(lambda: onwards and "trying again" in attempt.text())
        children = Path(
            f"/proc/{attempt.process.pid}/task/{attempt.process.pid}/children"
        )
        if attempt.process.poll() is None:  # it tries for ever: a user gives up
            os.kill(int(children.read_text()), signal.SIGINT)
            attempt.wait_for()
        hit = [path for *_, path in traced(log, "(INJECTED)") if str(place) in path]
        attempt.note, attempt.struck = f"{inject} {', '.join(hit[:3])}", bool(hit)
        return attempt
    if kind == "slow disk":
        slow = "inject=fsync,rename,mkdir:delay_enter=20000"  # microseconds
        return Attempt(job, place, strace(log, WRITES, "-e", slow))
    if kind == "small disk":
        folder, size_kB = place / "run", draw.randrange(100, 1500)
        folder.mkdir()
        mount = ("mount", "-t", "tmpfs", "none", folder, "-o")
        subprocess.run([*mount, f"size={size_kB}k"], check=True)
        attempt = Attempt(job, place)
        attempt.wait_for(lambda: "trying again" in attempt.text())
        attempt.note = f"{size_kB} kB"
        subprocess.run([*mount, "remount,size=64m"], check=True)
        return attempt
    attempt = Attempt(job, place)
    time.sleep(draw.choice((0, draw.uniform(0, sum(job.seconds.values())))))
    run = "run" if kind == "two on a workdir" else "run2"
    other = Attempt(job, place, run=run)
    if (code := other.ended()) == 0:
        compare(job, place, run)
    elif code != 2 or "in use by another" not in other.text():
        raise Broken("lost", f"the second: exit {code}: {other.text()[-1000:]}")
    return attempt


def run_case(job: Job, place: Path, faults: list[Fault]) -> list[dict]:
    """Returns a line for each fault, up to the one in which the run ended.

    "result" is "survived", "refused" (with one line; the same command goes on),
    "missed" (the attempt ended before) or, of the last fault, what is `Broken`.
    """
    lines = []
    try:
        for fault in [*faults, None]:
            allowed = {0}
            if fault:
                lines.append({**fault._asdict(), "result": "missed", "note": ""})
                numbers = SIGNALS.get(fault.kind, ())
                # Python ends in SIGINT if any KeyboardInterrupt, which SIGTERM raises,
                # too, came while it executed a string.
                allowed = {0, 2, -2} | {x for n in numbers for x in (-n, 128 + n)}
            attempt = strike(job, place, fault) if fault else Attempt(job, place)
            code = attempt.ended()
            lines[-1]["note"] += f"{attempt.note} exit {code} "
            if code not in allowed:
                raise Broken("lost", attempt.text()[-3000:])
            if fault and attempt.struck:
                lines[-1]["result"] = "refused" if code == 2 else "survived"
                lines[-1]["note"] += attempt.text()[-300:] * (code == 2)
            if code == 0:
                break
        compare(job, place)
    except Broken as broken:
        result, why = broken.args
        lines[-1] |= {"result": result, "note": lines[-1]["note"] + why}
    finally:
        if os.path.ismount(place / "run"):
            subprocess.run(["umount", place / "run"], check=True)
    return lines


def compare(job: Job, place: Path, run: str = "run") -> None:
    """Raises `Broken` if anything differs from the reference."""
    try:
        one, other = facts(job.reference, "run"), facts(place, run)
    except (OSError, ValueError, KeyError) as error:
        raise Broken("wrong", repr(error)) from error
    wrong = sorted(x for x in {*one, *other} if one.get(x) != other.get(x))
    if wrong:
        values = [f"{x}: {other.get(x)}, not {one.get(x)}" for x in wrong]
        raise Broken("wrong", "; ".join(values)[:2000])


def facts(place: Path, run: str) -> dict[str, object]:
    """Returns what must be equal: bytes of weights and corpus, losses, trials."""

    def read(name: str) -> list[dict]:
        return [json.loads(x) for x in (place / run / name).read_text().splitlines()]

    files = {str(x.relative_to(place)): x for x in place.glob("data/*/*")}
    files |= {x.name: x for x in (place / run).glob("*.safetensors")}
    found = {name: hash(path.read_bytes()) for name, path in files.items()}
    keys = ("step", "updates", "tokens", "loss", "grad_norm", "learning_rate")
    lines = [x for x in read("metrics.jsonl") if "event" not in x]
    found["metrics"] = [[x[key] for key in keys] for x in lines]
    summary = json.loads((place / run / "pretrain.json").read_text())
    keys = ("held_out_loss", "train_loss", "passes", "micro_steps", "updates")
    found["summary"] = [summary[key] for key in keys]
    found["glue"] = json.loads((place / run / "glue.json").read_text())["tasks"]
    # Interrupted trials are repeated: of the lines about an epoch the last one counts.
    lines = read("finetune.jsonl")
    found["epochs"] = {f"{x['trials']}, epoch {x['epoch']}": x["loss"] for x in lines}
    for path in (place / run).glob("predictions/*"):
        with np.load(path) as arrays:
            found |= {f"{path.name}/{name}": x.tobytes() for name, x in arrays.items()}
    return found | {"report": (place / run / "report.md").exists()}
