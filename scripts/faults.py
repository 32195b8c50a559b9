"""Breaks tiny runs on purpose, by cases that a seed draws, until the time is over.

    python scripts/faults.py --hours=2 --seed=0 --log=faults.jsonl

A line of the log is a fault; the table counts them. --first=N begins with case N,
--cases=N ends after so many. See tests/faults/harness.py.
"""

import argparse
import collections
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
import harness
from harness import Fault

GO_ON = ("closed pipe", "STOP, CONT")  # the other signals end an attempt
KILLS = 10  # in a case that has nothing else
RESULTS = ("survived", "refused", "lost", "wrong", "traceback")


def table(lines: list[dict]) -> str:
    """Returns a Markdown table: a row for each kind of fault in each stage."""
    struck = [x for x in lines if x["result"] in RESULTS]
    counts = collections.Counter((x["kind"], x["stage"], x["result"]) for x in struck)
    rows = sorted({(kind, stage) for kind, stage, _ in counts})
    numbers = [[counts[*row, result] for result in RESULTS] for row in rows]
    body = [[*row, sum(n), *n] for row, n in zip(rows, numbers, strict=True)]
    sums = [sum(column) for column in zip(*numbers, strict=True)]
    body.append(["all", "", sum(sums), *sums])
    results = ("survived", "refused with one line", *RESULTS[2:])
    head = ["fault", "stage", "count", *results]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def drawn(seed: str) -> list[Fault]:
    """Returns the faults of a case: some of a stage, or one of a whole attempt."""
    draw = random.Random(seed)
    kinds = [*harness.SIGNALS, *harness.ERRORS, *harness.WHOLE]
    if os.geteuid() != 0:
        kinds.remove("small disk")  # only root can mount it
    if (last := draw.choice(kinds)) in harness.WHOLE:
        return [Fault(last, "all", seed)]
    count = KILLS if last == "KILL" else draw.choice((1, 1, 2, 3, 4))
    stages = sorted(draw.choices(harness.STAGES, k=count), key=harness.STAGES.index)
    ending = {*harness.SIGNALS, *harness.ERRORS} - {*GO_ON}
    before = ["KILL"] if last == "KILL" else sorted(ending)
    chosen = [*draw.choices(before, k=count - 1), last]
    cases = enumerate(zip(chosen, stages, strict=True))
    return [Fault(*kind_and_stage, f"{seed}-{i}") for i, kind_and_stage in cases]


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1 << 30)
    parser.add_argument("--log", type=Path, default=Path("faults.jsonl"))
    flags = parser.parse_args()
    if not harness.STRACE:
        sys.exit("error: strace, which makes writes fail, is missing or forbidden")
    until, lines = time.monotonic() + 3600 * flags.hours, []
    with tempfile.TemporaryDirectory() as folder:
        job = harness.Job(Path(folder))
        for number in range(flags.first, flags.first + flags.cases):
            if time.monotonic() > until:
                break
            place = Path(folder) / str(number)
            faults = drawn(f"{flags.seed}-{number}")
            new = harness.run_case(job, place, faults)
            shutil.rmtree(place)
            with flags.log.open("a") as log:
                for line in new:
                    log.write(json.dumps({"case": number, **line}) + "\n")
                    print(number, *(line[k] for k in ("kind", "stage", "result")))
            lines += new
    print(table(lines))


if __name__ == "__main__":
    main()
