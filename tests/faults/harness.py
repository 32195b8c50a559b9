"""Breaks a tiny run on purpose, starts it again until it ends, and compares.

A case is a few faults in the order of their stages. Each one strikes a life: a process
with the same command in the same folders. Afterwards the command runs undisturbed, and
what the run has made must equal, to the bit, what an undisturbed one (the reference)
has made.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

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
STAGE_OF_FILES = (
    ("^/data", "preparing"),
    ("/checkpoints", "checkpoint"),
    (r"/(config|corpus|tokenizer)\.json|^/run$", "compiling"),
    (r"/metrics|/pretrain|\.safetensors", "training"),
    (r"/predictions|/finetune|/glue\.json", "fine-tuning"),
    ("", "report"),
)
PATIENCE_S = 240  # a longer life hangs
WRITES = ("write", "writev", "fsync", "rename", "mkdir")  # system calls
# Signals and, after each, the longest pause in seconds.
SIGNALS = {
    "KILL": ((signal.SIGKILL, 0),),
    "TERM": ((signal.SIGTERM, 0),),
    "INT twice": ((signal.SIGINT, 0.5), (signal.SIGINT, 0)),
    "STOP, CONT": ((signal.SIGSTOP, 2), (signal.SIGCONT, 0)),
    "closed pipe": (),
    "closed pipe, INT": ((signal.SIGINT, 0),),  # as with `command | tee`
    "closed terminal": (),  # the system sends SIGHUP
}
ERRORS = ("EIO", "ENOSPC", "EROFS", "EDQUOT")
# Without a stage.
WHOLE = ("slow disk", "small disk", "two on a workdir", "two on a corpus")
# What a life may end in besides 0 and 2, as `subprocess` reports it. Python ends in
# SIGINT if any KeyboardInterrupt, SIGTERM's too, came while it executed a string.
CODES = {
    "KILL": {-9},
    "TERM": {-15, 143, -2},
    "INT twice": {-2, 130},
    "closed pipe, INT": {-2, 130},
    "closed terminal": {-1, 129},
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to a life in a stage; `seed` draws the moment or the write."""

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
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        life = Life(self, folder / "first")
        assert life.ended() == 0, life.text()
        self.reference, log = folder / "reference", folder / "reference.strace"
        life, began = Life(self, self.reference, strace(log, WRITES)), {}
        for stage in STAGES:
            life.wait_for(lambda stage=stage: life.has_begun(stage))
            began[stage] = time.time()
        assert life.ended() == 0, life.text()
        del began["checkpoint"]  # a moment
        spans = zip(began, began.values(), [*began.values(), time.time()][1:])  # noqa: B905
        self.seconds = {stage: end - start for stage, start, end in spans}
        self.seconds["checkpoint"] = 0.1
        self.calls = collections.defaultdict(lambda: collections.defaultdict(list))
        numbers: collections.Counter[tuple[str, str]] = collections.Counter()
        for thread, call, path in traced(log):
            numbers[thread, call] += 1
            if path.startswith(f"{self.reference}/"):
                name = path.removeprefix(str(self.reference))
                stage = next(
                    s for pattern, s in STAGE_OF_FILES if re.search(pattern, name)
                )
                kind = re.sub(r"[0-9a-f]{12,}|\d+", "*", name)
                self.calls[stage, call][kind].append(numbers[thread, call])


def strace(log: Path, calls, *options: str) -> list[str]:
    """Returns the beginning of a command under strace."""
    only = ("-e", f"trace={','.join(calls)}", "-s", "0", "-y", "-o", str(log))
    return ["strace", "-f", "--seccomp-bpf", *only, *options]


def traced(log: Path, only: str = "") -> list[tuple[str, str, str]]:
    """Returns (thread, system call, path) of a log's calls, of those with `only`."""
    begun, found = {}, []
    for line in log.read_text(errors="replace").splitlines():
        if match := re.match(r'(\d+) +(?:<... )?(\w+)(?:\((?:\d+<|")?([^>"]*))?', line):
            thread, call, path = match.groups()
            if path is not None:  # else it is the end of an interrupted line
                begun[thread, call] = path
            if only in line and (only or path is not None):
                found.append((thread, call, begun[thread, call]))
    return found


class Life:
    """A process with the command; its output is in a file."""

    def __init__(self, job: Job, place: Path, prefix=(), run="run", reader=""):
        """Starts it in the folders data and `run` of a place.

        Its output goes to a "pipe" or a "terminal" first, if that is its reader.
        """
        place.mkdir(exist_ok=True)
        self.place, self.workdir, self.since = place, place / run, time.time()
        self.file = place.with_name(f"{place.name}-{run}-{self.since}.txt")
        self.reader, self.note = None, ""
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
        while self.reader and select.select([self.reader], [], [], 0)[0]:
            new = b""
            with contextlib.suppress(OSError):  # the process has closed the terminal
                new = os.read(self.reader, 1 << 16)
            if not new:
                self.leave()
            with self.file.open("ab") as file:
                file.write(new)
        return self.file.read_text(errors="replace")

    def leave(self) -> None:
        """Closes the reader, if there is one."""
        if self.reader:
            os.close(self.reader)
        self.reader = None

    def has_begun(self, stage: str) -> bool:
        """Returns whether this life has come to a stage."""
        if stage == "preparing":
            return "workdir: " in self.text()
        if stage == "compiling":
            return (self.workdir / "corpus.json").stat().st_mtime > self.since
        if stage == "training":
            lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
            last = json.loads(lines[-1])
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
        """Waits for the end; returns the exit code.

        Raises:
          Broken: it hangs, or has a traceback, or exits with 2 and not one line.
        """
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
            lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
            last = json.loads(lines[-1])
            saved = self.workdir / "checkpoints" / str(last["step"])
            if last.get("event") != "stopped" or not saved.exists():
                raise Broken("lost", f"not saved when it stopped: {last}")
        return code


def strike(job: Job, place: Path, fault: Fault) -> tuple[Life, bool]:
    """Starts a life that meets the fault; returns it, and whether the fault came."""
    draw, kind, log = random.Random(fault.seed), fault.kind, place / "strace.txt"
    if kind in SIGNALS:
        return _strike_with_signals(job, place, fault, draw)
    if kind in ERRORS:
        call = draw.choice([c for c in WRITES if (fault.stage, c) in job.calls])
        numbers = job.calls[fault.stage, call]
        number = draw.choice(numbers[draw.choice(sorted(numbers))])
        # A full disk makes a run wait for room, and without `write` it says nothing.
        onwards = kind in ("EIO", "EROFS") and call != "write" and draw.random() < 0.5
        inject = f"inject={call}:error={kind}:when={number}{'+' * onwards}"
        place.mkdir(exist_ok=True)
        life = Life(job, place, strace(log, [call], "-e", inject))
        life.wait_for()
        hit = [path for _, _, path in traced(log, "(INJECTED)")]
        life.note = f"{inject} {', '.join(hit[:3])}"
        return life, any(path.startswith(f"{place}/") for path in hit)
    if kind == "slow disk":
        slow = "inject=fsync,rename,mkdir:delay_enter=20000"  # microseconds
        place.mkdir(exist_ok=True)
        return Life(job, place, strace(log, WRITES, "-e", slow)), True
    if kind == "small disk":
        folder, size_kB = place / "run", draw.randrange(100, 1500)
        folder.mkdir(parents=True)
        mount = ("mount", "-t", "tmpfs", "none", folder, "-o")
        subprocess.run([*mount, f"size={size_kB}k"], check=True)
        life = Life(job, place)
        life.wait_for(lambda: "waiting for room" in life.text())
        life.note = f"{size_kB} kB"
        subprocess.run([*mount, "remount,size=64m"], check=True)
        return life, True
    # Two at the same time, or nearly.
    life = Life(job, place)
    time.sleep(draw.uniform(0, sum(job.seconds.values())) * draw.choice((0, 1)))
    same = kind == "two on a workdir"
    other = Life(job, place, run="run" if same else "run2")
    code = other.ended()
    if code not in (0, 2) or (code and "in use by another" not in other.text()):
        raise Broken("lost", f"the second: exit {code}: {other.text()[-1000:]}")
    if not same:
        compare(job, place, "run2")
    return life, True


def _strike_with_signals(job: Job, place: Path, fault: Fault, draw: random.Random):
    """Waits for a random moment of the stage, and closes the reader or signals."""
    reader = re.match("(?:closed )?(pipe|terminal)?", fault.kind)[1] or ""
    life, wait_s = Life(job, place, reader=reader), draw.random()
    began = life.wait_for(lambda: life.has_begun(fault.stage))
    time.sleep(wait_s * job.seconds[fault.stage])
    struck = began and life.process.poll() is None
    life.leave()
    for number, pause_s in SIGNALS[fault.kind] if struck else ():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            # Ctrl-C reaches the whole group.
            send = os.killpg if number == signal.SIGINT else os.kill
            send(life.process.pid, number)
        time.sleep(pause_s * draw.uniform(0.1, 1))
    return life, struck


def drawn(seed: str) -> list[Fault]:
    """Returns the faults of a case."""
    draw = random.Random(seed)
    kinds = [*SIGNALS, *ERRORS, *WHOLE]
    if os.geteuid() != 0:
        kinds.remove("small disk")  # which only root can mount
    if (last := draw.choice(kinds)) in WHOLE:
        return [Fault(last, "all", seed)]
    count = draw.choice((1, 1, 2, 3, 4))
    stages = sorted(draw.choices(STAGES, k=count), key=STAGES.index)
    ending = [*CODES, *ERRORS]  # the others let the run go on to its end
    chosen = [*draw.choices(ending, k=count - 1), last]
    return [Fault(*x, f"{seed}-{i}") for i, x in enumerate(zip(chosen, stages))]  # noqa: B905


def run_case(job: Job, place: Path, faults: list[Fault]) -> list[dict]:
    """Returns a line for each fault, up to the one in which the run ended.

    "result" is "survived" (it ended in a signal, or the run went on), "refused" (with
    one line; the same command goes on), "missed" (the life ended before) or, of the
    last fault, what is `Broken`.
    """
    lines = []
    try:
        for fault in [*faults, None]:
            if fault:
                lines.append({**vars(fault), "result": "missed", "note": ""})
            life, struck = strike(job, place, fault) if fault else (Life(job, place), 0)
            code = life.ended()
            lines[-1]["note"] += f"{life.note} exit {code} "
            if code not in ({0, 2} | CODES.get(fault.kind, set()) if fault else {0}):
                raise Broken("lost", life.text()[-3000:])
            if struck:
                lines[-1]["result"] = "refused" if code == 2 else "survived"
            if code == 2:
                lines[-1]["note"] += life.text()[-300:]
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
    one, other = facts(job.reference, "run"), facts(place, run)
    wrong = sorted(x for x in {*one, *other} if one.get(x) != other.get(x))
    if wrong:
        values = [f"{n}: {other.get(n)}, not {one.get(n)}" for n in wrong]
        raise Broken("wrong", "; ".join(values)[:2000])


def facts(place: Path, run: str) -> dict[str, object]:
    """Returns what must be equal: bytes of weights and corpus, losses, trials."""

    def lines(name: str) -> list[dict]:
        return [json.loads(x) for x in (workdir / name).read_text().splitlines()]

    workdir, corpora = place / run, [*(place / "data").glob("*/")]
    paths = [path for corpus in corpora for path in corpus.iterdir()]
    paths += [*workdir.glob("*.safetensors"), workdir / "tokenizer.json"]
    found = {f"{p.parent.name}/{p.name}": hash(p.read_bytes()) for p in paths}
    keys = ("step", "updates", "tokens", "loss", "grad_norm", "learning_rate")
    measured = [x for x in lines("metrics.jsonl") if "event" not in x]
    found["metrics"] = [[x[key] for key in keys] for x in measured]
    summary = json.loads((workdir / "pretrain.json").read_text())
    keys = ("held_out_loss", "train_loss", "tokens", "passes", "micro_steps", "updates")
    found |= {key: summary[key] for key in keys}
    found["glue"] = json.loads((workdir / "glue.json").read_text())["tasks"]
    keys = ("task", "start", "rate", "trials", "epoch")  # of these the last line counts
    found["epochs"] = {
        repr([x[k] for k in keys]): x["loss"] for x in lines("finetune.jsonl")
    }
    for path in workdir.glob("predictions/*"):
        with np.load(path) as arrays:
            found |= {f"{path.name}/{name}": x.tobytes() for name, x in arrays.items()}
    found["report"] = (workdir / "report.md").exists()
    return found
