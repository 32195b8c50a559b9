"""GLUE from TensorFlow Datasets, without TensorFlow."""

import functools
import os
from pathlib import Path
from typing import Any

from cramjax.config import GlueConfig
from cramjax.data import tfds
from cramjax.glue.tasks import Incomplete, Row, Split, Table, Task

ANSWER_S = 5.0  # how long a host may take to answer
# The files of the one task that is not an archive.
MRPC = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "data_mrpc_dev_ids.tsv")
# Names of the texts where they are not those of the benchmark's files.
TEXTS = {"mrpc": ("sentence1", "sentence2"), "mnli": ("premise", "hypothesis")}


def folder(glue: GlueConfig) -> Path:
    """Returns the folder where TFDS prepares and finds its data, for all runs."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(glue.tfds_dir or default).expanduser()


def check(task: Task, glue: GlueConfig) -> None:
    """Finds out whether a task is prepared or can be; downloads nothing.

    Raises:
      Incomplete: a file can neither be downloaded nor is in downloads/manual.
    """
    import requests  # TFDS downloads with it, too

    try:
        builder = _builder(task.name, folder(glue))
    except Exception as error:  # for example, prepared in another file format
        raise _incomplete(task, glue, tfds.reason(error)) from error
    if builder.data_path.exists():
        return
    for url, info in builder.url_infos.items():
        needed = url == builder.builder_config.data_url
        needed |= task.name == "mrpc" and info.filename in MRPC
        if not needed or (_manual(folder(glue)) / info.filename).exists():
            continue
        try:
            # Not HEAD, which some hosts refuse; the content is not read.
            with requests.get(url, stream=True, timeout=ANSWER_S) as response:
                response.raise_for_status()
        except OSError as error:  # all of the package's errors are
            why = f"{info.filename} cannot be downloaded: {tfds.reason(error)}"
            raise _incomplete(task, glue, why) from error


def read(task: Task, split: Split, glue: GlueConfig) -> Table | None:
    """Returns a split's rows in the order of the original file, or None without it.

    Downloads and prepares what is missing, except files in downloads/manual.

    Raises:
      Incomplete: it cannot be prepared.
    """
    try:
        splits = _splits(task.name, folder(glue))
    except Exception as error:  # the library and its downloads raise all kinds
        raise _incomplete(task, glue, tfds.reason(error)) from error
    name = Path(split.files[0]).stem.replace("dev", "validation")
    if name not in splits:
        return None
    # Rows are stored shuffled; `idx` is their position in the original file.
    records = sorted(splits[name], key=lambda record: int(record["idx"]))
    rows = []
    for record in records:
        texts = [record[key] for key in TEXTS.get(task.name, split.texts)]
        texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
        label = str(record["label"])
        if task.labels:  # the same order as in TFDS; -1 in a test set
            label = (*task.labels, "")[record["label"]]
        rows.append(Row(int(record["idx"]) + 1, tuple(texts), label))
    return Table(f"{folder(glue)}/glue/{task.name}, {name}", rows)


def _incomplete(task: Task, glue: GlueConfig, why: str) -> Incomplete:
    given = (
        "without glue.tfds_dir" if glue.tfds_dir else f"{glue.data_dir} is no folder"
    )
    return Incomplete(
        task.title,
        f"TFDS cannot prepare glue/{task.name}: {why}",
        f"put the files into {_manual(folder(glue))}, or the benchmark's own folders "
        f"into config.glue.data_dir ({given}), or pass another "
        "--config.glue.tfds_dir",
    )


def _manual(tfds_dir: Path) -> Path:
    """Returns the folder for files that were downloaded by hand."""
    return tfds_dir / "downloads" / "manual"


def _builder(name: str, tfds_dir: Path) -> Any:
    # Registers "glue"; the package's own list of imports stops before it without h5py.
    import tensorflow_datasets.text.glue  # noqa: F401

    return tfds.builder(f"glue/{name}", tfds_dir)


@functools.cache
def _splits(name: str, tfds_dir: Path) -> dict[str, Any]:
    builder = _builder(name, tfds_dir)
    tfds.prepare(builder, _manual(tfds_dir))
    return builder.as_data_source()
