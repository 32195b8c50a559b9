"""Little memory, many files, positions beyond 32 bits, far too large numbers."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import tiny_config

from cramjax.data import prepare
from cramjax.data.corpus import Blocks
from cramjax.errors import TrainingFailed
from cramjax.training import pretrain

READ = """
import resource, sys
from pathlib import Path
from cramjax.config import DataConfig
from cramjax.data.readers import File, ReadContext
resource.setrlimit(resource.RLIMIT_AS, (1_000_000_000,) * 2)
context = ReadContext(DataConfig())
chars = [len(text) for text in File(path=Path(sys.argv[1])).documents(context)]
print(sum(chars), max(chars, default=0), dict(context.problems))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "before", "after", "printed"),
    [
        ("a.txt", b"", b"", "300000000 4194304 {'documents cut for their length': 71}"),
        ("a.jsonl", b'{"text": "', b'"}', "0 0 {'lines that are not JSON objects': 5,"),
        ("a.csv", b"text\n", b"\nend\n", "3 3 {'rows that are not CSV': 1}"),
    ],
)
def test_a_line_of_300_megabytes_in_one_gigabyte(
    tmp_path, name, before, after, printed
):
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(before)
        for _ in range(300):
            file.write(b"x" * 1_000_000)
        file.write(after)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(printed), (done.stdout, done.stderr[-500:])


def test_blocks_beyond_32_bits(tmp_path):
    """In a sparse file of 9 GB; and their tokens are more than 2^32."""
    length, blocks = 2048, 2_200_000
    path = tmp_path / "blocks.bin"
    with path.open("wb") as file:
        file.truncate(blocks * length * 2)
        file.seek(-2 * length, os.SEEK_END)
        file.write(np.arange(length, dtype="<u2").tobytes())
    shard = {"file": path.name, "blocks": blocks, "crc32": 0}
    found = Blocks(tmp_path, [shard, shard], length, "<u2")
    assert len(found) * length > 2**32
    rows_N = np.array([0, blocks - 1, blocks, 2 * blocks - 1])
    tokens_NxL = found.take(rows_N)
    assert tokens_NxL[:, -1].tolist() == [0, length - 1, 0, length - 1]


@pytest.mark.slow
def test_a_learning_rate_of_10000_is_a_failure_not_a_result(tmp_path, corpus, data_dir):
    config = tiny_config(data_dir, "optimizer.learning_rate=1e4", "guard.max_loss=9")
    with pytest.raises(TrainingFailed) as error:
        pretrain.pretrain(config, corpus, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "pretrain.json").exists()


@pytest.mark.slow
def test_a_thousand_small_sources(tmp_path):
    """One of them is empty; and all are read with few open files."""
    names = [str(tmp_path / f"{i}.txt") for i in range(1000)]
    for i, name in enumerate(names):
        with open(name, "w") as file:
            file.write("" if i == 500 else f"the cat sat on mat {i % 10} . " * 9)
    config = tiny_config(
        *(tmp_path / "d", f"data.sources={tuple(names)!r}", "model.vocab_size=36"),
        *("data.held_out_share=0.2", "data.sep=True"),
    )
    corpus = prepare.prepare(config)
    manifest = corpus.manifest
    assert len(manifest["sources"]) == len(manifest["text"]) == 1000
    assert manifest["problems"] == {"files without text": 1}
    assert sum(manifest["documents"].values()) == 999
    corpus.verify()
    assert sum(map(len, corpus.train.chunks())) == len(corpus.train) > 500
