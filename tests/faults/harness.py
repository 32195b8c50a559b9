"""Breaks a tiny run on purpose, starts it again until it ends, and compares.

A case is a few faults in the order of their stages. Each one strikes a life: a process
that is given the same command in the same folder. After the last fault the command
runs undisturbed, and then everything that the run has made must equal, to the bit,
what an undisturbed run (the reference) has made.
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

OVERRIDES = (
    "--config=configs/small.py",
    "--config.seed=1",
    "--config.micro_batch=4",
    "--config.model.width=32",
    "--config.model.ffn_width=64",
    "--config.model.heads=2",
    "--config.model.layers=1",
    "--config.model.vocab_size=256",
    "--config.data.max_chars=400000",
    "--config.batch.sequences=12",
    "--config.budget.tokens=12800",
    "--config.log.every_steps=10",
    "--config.validation.max_blocks=6",
    "--config.validation.every_minutes=0.02",
    "--config.checkpoint.every_minutes=0.01",
    "--config.glue.tasks=('intents10',)",
    "--config.glue.starts=('pretrained',)",
    "--config.glue.max_train_rows=32",
    "--config.glue.trials=2",
    "--config.glue.trials_at_once=1",
    "--config.glue.epochs=1",
    "--config.glue.learning_rates=(1e-3,)",
    "--config.glue.head_width=16",
)
STAGES = (
    *("preparing", "compiling", "training", "checkpoint"),
    *("fine-tuning", "report"),
)
PATIENCE_S = 240  # of a life; a longer one hangs
WRITES = ("write", "writev", "fsync", "rename", "mkdir")  # system calls
ERRORS = ("EIO", "ENOSPC", "EROFS", "EDQUOT")
DELAY_US = 20_000  # of each call, on a slow disk


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to a life in a stage; `seed` draws the moment or the call."""

    kind: str  # one of KINDS
    stage: str
    seed: str


class Broken(Exception):
    """The invariant does not hold: a result ("lost", "wrong", ...), and why."""

    def __init__(self, result: str, why: str):
        super().__init__(result, why)
        self.result, self.why = result, why


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
        life, began = Life(self, self.reference, strace(log, *WRITES)), []
        for stage in STAGES:
            life.wait_for(lambda stage=stage: life.has_begun(stage))
            began.append(time.time())
        assert life.ended() == 0, life.text()
        # A checkpoint lasts a moment, and comes while it is training.
        began[STAGES.index("checkpoint")] = began[STAGES.index("training")]
        spans = zip(STAGES, began, [*began[1:], time.time()], strict=True)
        self.seconds = {stage: end - start for stage, start, end in spans}
        self.seconds["training"] = self.seconds["checkpoint"]
        self.seconds["checkpoint"] = 0.1
        self.calls = self._calls(log)

    def _calls(self, log: Path) -> dict[tuple[str, str], dict[str, list[int]]]:
        numbers: collections.Counter[tuple[str, str]] = collections.Counter()
        found: dict[tuple[str, str], dict[str, list[int]]] = {}
        for thread, call, path in traced(log):
            numbers[thread, call] += 1
            if path.startswith(f"{self.reference}/"):
                name = path.removeprefix(str(self.reference))
                kind = re.sub(r"[0-9a-f]{12,}|\d+", "*", name)
                of_stage = found.setdefault((stage_of(name), call), {})
                of_stage.setdefault(kind, []).append(numbers[thread, call])
        return found


def strace(log: Path, *calls: str, inject: str = "") -> list[str]:
    """Returns the beginning of a command under strace."""
    options = ["-e", f"inject={inject}"] if inject else []
    traced = ["-e", f"trace={','.join(calls)}", "-s", "0", "-y", "-o", str(log)]
    return ["strace", "-f", "--seccomp-bpf", *traced, *options]


def traced(log: Path, only: str = "") -> list[tuple[str, str, str]]:
    """Returns (thread, system call, path) of a log's calls, of those with `only`."""
    # A call's end may be on another line than its beginning, which has the path.
    begun: dict[tuple[str, str], str] = {}
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if match := re.match(r'(\d+) +(\w+)\((?:\d+<|")?([^>"]*)', line):
            thread, call, path = match.groups()
            begun[thread, call] = path
            if not only or only in line:
                found.append((thread, call, path))
        elif only and only in line:
            thread, call = re.match(r"(\d+) +<\.\.\. (\w+)", line).groups()
            found.append((thread, call, begun[thread, call]))
    return found


def stage_of(name: str) -> str:
    """Returns in which stage a file is written."""
    for pattern, stage in (
        ("^/data", "preparing"),
        ("/checkpoints", "checkpoint"),
        (r"/(config|corpus|tokenizer)\.json|^/run$", "compiling"),
        (r"/metrics|/pretrain|\.safetensors", "training"),
        (r"/predictions|/finetune|/glue\.json", "fine-tuning"),
    ):
        if re.search(pattern, name):
            return stage
    return "report"


class Life:
    """A process with the command; its output is in a file."""

    def __init__(self, job: Job, place: Path, prefix=(), run="run", reader=""):
        """Starts it: in the folders data and `run` of a place.

        `reader` is what its output goes to: "pipe", "terminal" or, directly, the file.
        """
        place.mkdir(exist_ok=True)
        self.workdir, self.since = place / run, time.time()
        self.file = place.with_name(f"{place.name}-{run}-{self.since}.txt")
        folders = (f"--config.data.dir={place}/data", f"--workdir={self.workdir}")
        command = [sys.executable, "-m", "cramjax.main", *OVERRIDES, *folders]
        self.reader, self.note = None, ""
        with self.file.open("wb") as file:
            streams = {"stdout": file, "stderr": file, "stdin": subprocess.DEVNULL}
            if reader == "pipe":  # as in `command | head`
                self.reader, streams["stdout"] = os.pipe()
            if reader == "terminal":
                self.reader, terminal = pty.openpty()
                streams = dict.fromkeys(streams, terminal)
                prefix = ["setsid", "--ctty", *prefix]
            # A process started under `nohup` ignores SIGHUP, and so would its children.
            before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
            self.process = subprocess.Popen(
                [*prefix, *command],
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
            try:
                new = os.read(self.reader, 1 << 16)
            except OSError:  # the process has closed the terminal
                new = b""
            if not new:
                self.close_reader()
            with self.file.open("ab") as file:
                file.write(new)
        return self.file.read_text(errors="replace")

    def close_reader(self) -> None:
        """Goes away, as a user who closes the window."""
        reader, self.reader = self.reader, None
        os.close(reader)

    def has_begun(self, stage: str) -> bool:
        """Returns whether this life has come to a stage."""

        def written(name: str) -> bool:
            path = self.workdir / name
            return path.exists() and path.stat().st_mtime > self.since

        if stage == "preparing":
            return "workdir: " in self.text()
        if stage == "compiling":
            return written("corpus.json")
        if stage == "training":
            lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
            last = json.loads(lines[-1])
            return last["time"] > self.since and last.get("event") != "resumed"
        if stage == "checkpoint":
            return any(self.workdir.glob("checkpoints/*-tmp"))
        name = "pretrain.json" if stage == "fine-tuning" else "glue.md"
        return (self.workdir / name).exists()

    def wait_for(self, condition) -> bool:
        """Returns whether it comes true before the process ends."""
        until = self.since + PATIENCE_S
        while self.process.poll() is None and time.time() < until:
            with contextlib.suppress(OSError, IndexError, ValueError):  # not there yet
                if condition():
                    return True
            self.text()  # a process waits if nobody reads its output
            time.sleep(0.005)
        return False

    def signal(self, number: int) -> None:
        """Sends a signal; Ctrl-C reaches the whole group."""
        if self.process.poll() is None:
            send = os.killpg if number == signal.SIGINT else os.kill
            send(self.process.pid, number)

    def ended(self) -> int:
        """Waits for the end; returns the exit code.

        Raises:
          Broken: it did not end, or with a traceback.
        """
        self.wait_for(lambda: False)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise Broken("lost", f"hangs: {self.text()[-1000:]}")
        text, code = self.text(), self.process.returncode
        if "Traceback" in text or "Fatal Python error" in text:
            raise Broken("traceback", f"exit {code}: {text[-3000:]}")
        if code == 2 and text.count("\nerror: ") + text.startswith("error: ") != 1:
            raise Broken("lost", f"exit 2 without one line: {text[-1000:]}")
        return code


def strike_with_signals(job: Job, place: Path, fault: Fault, draw: random.Random):
    """Sends signals at a random moment of the stage."""
    life = Life(job, place)
    if not waited_for_moment(job, life, fault.stage, draw):
        return life, False
    for number, pause_s in SIGNALS[fault.kind]:
        life.signal(number)
        time.sleep(pause_s * draw.uniform(0.1, 1))
    return life, True


def strike_reader(job: Job, place: Path, fault: Fault, draw: random.Random):
    """Closes what the output goes to."""
    life = Life(job, place, reader=fault.kind.removeprefix("closed "))
    struck = waited_for_moment(job, life, fault.stage, draw)
    if life.reader:
        life.close_reader()
    return life, struck


def waited_for_moment(job: Job, life: Life, stage: str, draw: random.Random) -> bool:
    """Waits for a random moment of a stage; returns whether the life is so far."""
    wait_s = draw.uniform(0, job.seconds[stage])
    began = life.wait_for(lambda: life.has_begun(stage))
    time.sleep(wait_s)
    return began and life.process.poll() is None


def strike_write(job: Job, place: Path, fault: Fault, draw: random.Random):
    """Lets a write of the stage fail: one of them, or all from there on."""
    call = draw.choice([c for c in WRITES if (fault.stage, c) in job.calls])
    files = job.calls[fault.stage, call]
    number = draw.choice(files[draw.choice(sorted(files))])
    # A full disk makes a run wait for room, and without `write` it says nothing.
    onwards = "+" * (fault.kind in ("EIO", "EROFS") and call != "write")
    onwards = onwards and draw.choice(("", onwards))
    log = place / "strace.txt"
    inject = f"{call}:error={fault.kind}:when={number}{onwards}"
    life = Life(job, place, strace(log, call, inject=inject))
    life.wait_for(lambda: False)
    hit = [path for _, _, path in traced(log, only="(INJECTED)")]
    life.note = f"{inject} {', '.join(hit[:3])}"
    return life, any(path.startswith(str(place)) for path in hit)


def strike_slowly(job: Job, place: Path, fault: Fault, draw: random.Random):
    """Makes every write slow."""
    del fault, draw
    inject = f"fsync,rename,mkdir:delay_enter={DELAY_US}"
    return Life(job, place, strace(place / "strace.txt", *WRITES, inject=inject)), True


def strike_small_disk(job: Job, place: Path, fault: Fault, draw: random.Random):
    """Gives the run a disk that is soon full, and room when it asks for it."""
    del fault
    workdir = place / "run"
    workdir.mkdir(exist_ok=True)
    kilobytes = draw.randrange(100, 1500)
    mount = ["mount", "-t", "tmpfs", "-o"]
    subprocess.run([*mount, f"size={kilobytes}k", "small", workdir], check=True)
    life = Life(job, place)
    life.wait_for(lambda: "waiting for room" in life.text())
    life.note = f"{kilobytes} kB"
    subprocess.run([*mount[:1], "-o", "remount,size=64m", workdir], check=True)
    return life, True


def strike_two(job: Job, place: Path, fault: Fault, draw: random.Random):
    """Starts two at once, with one workdir or one corpus between them."""
    life = Life(job, place)
    time.sleep(draw.uniform(0, sum(job.seconds.values())) * draw.choice((0, 1)))
    same = fault.kind == "two on a workdir"
    other = Life(job, place, run="run" if same else "run2")
    code = other.ended()
    if code not in (0, 2) or (code and "in use by another" not in other.text()):
        raise Broken("lost", f"the second: exit {code}: {other.text()[-1000:]}")
    if not same:
        compare(job, place, "run2")
    return life, True


# Signals and, after each, the longest pause in seconds.
SIGNALS = {
    "KILL": ((signal.SIGKILL, 0),),
    "TERM": ((signal.SIGTERM, 0),),
    "INT twice": ((signal.SIGINT, 0.5), (signal.SIGINT, 0)),
    "STOP, CONT": ((signal.SIGSTOP, 2), (signal.SIGCONT, 0)),
}
# What a life may end in besides 0 and 2, as subprocess reports it. Python ends in SIGINT
# if any KeyboardInterrupt, which SIGTERM is here, came while it executed a string.
CODES = {
    "KILL": {-9},
    "TERM": {-15, 143, -2},
    "INT twice": {-2, 130},
    "closed terminal": {-1, 129},
}
KINDS = {
    **dict.fromkeys(SIGNALS, strike_with_signals),
    **dict.fromkeys(("closed pipe", "closed terminal"), strike_reader),
    **dict.fromkeys(ERRORS, strike_write),
    "slow disk": strike_slowly,
    "small disk": strike_small_disk,
    **dict.fromkeys(("two on a workdir", "two on a corpus"), strike_two),
}
WHOLE = ("slow disk", "small disk", "two on a workdir", "two on a corpus")  # no stage


def drawn(seed: str) -> list[Fault]:
    """Returns the faults of a case."""
    draw = random.Random(seed)
    kinds = [kind for kind in KINDS if kind != "small disk" or os.geteuid() == 0]
    if (kind := draw.choice(kinds)) in WHOLE:
        return [Fault(kind, "all", seed)]
    kinds = [kind for kind in kinds if kind not in WHOLE]
    count = draw.choice((1, 1, 2, 3, 4))
    stages = sorted(draw.choices(STAGES, k=count), key=STAGES.index)
    ending = [kind for kind in kinds if kind in CODES]
    others = [*draw.choices(ending, k=count - 1), kind]
    return [
        Fault(kind, stage, f"{seed}-{i}")
        for i, (kind, stage) in enumerate(zip(others, stages, strict=True))
    ]


def run_case(job: Job, place: Path, faults: list[Fault]) -> list[dict]:
    """Returns a line for each fault: what came of it.

    "result" is "survived" (ended by a signal, or went on), "refused" (with one line,
    and the same command went on), "missed" (the life ended before) or, of the last
    fault, what `Broken` says: "lost", "wrong", "traceback".
    """
    lines = []
    try:
        for fault in [*faults, None]:
            if fault:
                draw = random.Random(fault.seed)
                lines.append({**vars(fault), "result": "missed", "note": ""})
                life, struck = KINDS[fault.kind](job, place, fault, draw)
            else:
                life, struck = Life(job, place), False
            code = life.ended()
            lines[-1]["note"] += f" {life.note} exit {code}"
            allowed = {0, 2} | CODES.get(fault.kind, set()) if fault else {0}
            if code not in allowed:
                raise Broken("lost", life.text()[-3000:])
            if struck:
                lines[-1]["result"] = "refused" if code == 2 else "survived"
            if code == 2:
                lines[-1]["note"] += life.text()[-300:]
            if code == 0:
                break
        compare(job, place)
    except Broken as broken:
        lines[-1] |= {"result": broken.result, "note": lines[-1]["note"] + broken.why}
    finally:
        if os.path.ismount(place / "run"):
            subprocess.run(["umount", place / "run"], check=True)
    return lines


def compare(job: Job, place: Path, run: str = "run") -> None:
    """Raises `Broken` if anything differs from the reference."""
    one, other = (facts(*x) for x in ((job.reference, "run"), (place, run)))
    wrong = [name for name in {*one, *other} if one.get(name) != other.get(name)]
    if wrong:
        values = [f"{n}: {other.get(n)}, not {one.get(n)}" for n in sorted(wrong)]
        raise Broken("wrong", "; ".join(values)[:2000])


def facts(place: Path, run: str) -> dict[str, object]:
    """Returns what must be equal: bytes of weights and corpus, losses, trials."""
    workdir = place / run
    corpus, data = next((place / "data").glob("*/manifest.json")).parent, place / "data"
    paths = [
        *corpus.iterdir(),
        *workdir.glob("*.safetensors"),
        workdir / "tokenizer.json",
    ]
    found = {path.name: hash(path.read_bytes()) for path in paths}
    found["corpora"] = [path.name for path in data.iterdir() if path.is_dir()]
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    keys = ("step", "updates", "tokens", "loss", "grad_norm", "learning_rate")
    found["metrics"] = [[x[key] for key in keys] for x in lines if "event" not in x]
    summary = json.loads((workdir / "pretrain.json").read_text())
    keys = ("held_out_loss", "train_loss", "tokens", "passes", "micro_steps", "updates")
    found |= {key: summary[key] for key in keys}
    found["glue"] = json.loads((workdir / "glue.json").read_text())["tasks"]
    lines = map(json.loads, (workdir / "finetune.jsonl").read_text().splitlines())
    keys = ("task", "start", "rate", "trials", "epoch")
    found["epochs"] = {repr([x[k] for k in keys]): x["loss"] for x in lines}
    for path in sorted(workdir.glob("predictions/*")):
        with np.load(path) as arrays:
            found |= {f"{path.name}/{name}": x.tobytes() for name, x in arrays.items()}
    found["report"] = (workdir / "report.md").exists()
    return found
