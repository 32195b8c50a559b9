"""Measures the data path: encoding beside the tokenizer alone, memory, disk, reading.

python scripts/measure_data.py --config=configs/a4000.py --config.data.sources=...

The corpus is built in a temporary folder in `data.dir`. Then its text is encoded again,
alternating with the tokenizers library on the same text in memory.
Prints JSON. Linux only: memory is the sum of all processes' proportional set sizes.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.timing import read_speed

from cramjax.config import Config
from cramjax.data import encode, prepare, sources, stages
from cramjax.data.corpus import TOKENIZER
from cramjax.data.readers import ReadContext
from cramjax.flags import parse_command_line
from cramjax.main import guarded

ROUNDS = 3
READ_S = 5.0


def measure(argv: Sequence[str]) -> None:
    """Builds the corpus in a temporary folder, runs all measurements, prints them."""
    config, _ = parse_command_line(argv)
    folder = Path(config.data.dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        # Encoding is measured on the text as it is: what is cut is cut before.
        data = dataclasses.replace(
            config.data, dir=temporary, drop_duplicates=False, dedup_bytes=0
        )
        print(json.dumps(_measure(dataclasses.replace(config, data=data)), indent=1))


def _measure(config: Config) -> dict[str, Any]:
    with _peaks(Path(config.data.dir)) as peaks:
        corpus = prepare.prepare(config)
    text_mb = corpus.manifest["bytes"] / 1e6
    facts = {
        "cores": stages.cores(),
        "text_mb": text_mb,
        "peak_memory_mb": peaks["memory"] / 1e6,
        "peak_disk_mb": peaks["disk"] / 1e6,
        "store_mb": sum(p.stat().st_size for p in corpus.path.iterdir()) / 1e6,
    }
    files = sources.resolve(config.data)
    texts = [t for file in files for t in file.documents(ReadContext(config.data))]
    speeds: dict[str, list[float]] = {"encoding": [], "tokenizers": []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=config.data.dir) as again:
            shutil.copy(corpus.path / TOKENIZER, again)
            start = time.monotonic()
            common = (config, Path(again), prepare.SHARD_CHARS)
            units = [
                stages.Unit(lambda: False, encode.encode_group, (i, group, *common))
                for i, group in enumerate(sources.grouped(files))
            ]
            stages.run([("corpus", units)])
            speeds["encoding"].append(text_mb / (time.monotonic() - start))
        start = time.monotonic()
        for first in range(0, len(texts), 1000):
            some = texts[first : first + 1000]
            corpus.tokenizer.encode_batch_fast(some, add_special_tokens=False)
        speeds["tokenizers"].append(text_mb / (time.monotonic() - start))
    for name, values in speeds.items():
        facts[f"{name}_mb_per_s"] = [round(value, 2) for value in values]
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    facts["ratio"] = medians["encoding"] / medians["tokenizers"]
    for order in ("stored", "random"):
        speed = read_speed(corpus, order, config.seed, READ_S)
        facts[f"read_{order}_tokens_per_s"] = speed
    return facts


@contextlib.contextmanager
def _peaks(folder: Path) -> Iterator[dict[str, float]]:
    """Samples bytes while the block runs: of this and child processes, of a folder."""
    found, stop = {"memory": 0.0, "disk": 0.0}, threading.Event()

    def sample() -> None:
        while not stop.wait(0.1):
            pids = [os.getpid(), *(p.pid for p in multiprocessing.active_children())]
            with contextlib.suppress(OSError):  # a process ended, a file was renamed
                found["memory"] = max(found["memory"], sum(map(_pss, pids)))
                disk = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
                found["disk"] = max(found["disk"], disk)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def _pss(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return float(re.search(r"^Pss:\s+(\d+) kB", text, re.M).group(1)) * 1024


if __name__ == "__main__":
    sys.exit(guarded(measure, sys.argv[1:], __doc__))
