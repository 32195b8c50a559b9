"""GLUE from TensorFlow Datasets, without TensorFlow."""

import functools
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cramjax.data.tfds import downloading, reason
from cramjax.errors import UserError
from cramjax.glue.readers import Row, Table
from cramjax.glue.tasks import Split, Task


def read(task: Task, split: Split, tfds_dir: str) -> Table | None:
    """Returns a split's rows in the order of the original file, or None without it.

    What is not prepared below `tfds_dir` yet is downloaded and prepared; archives that
    lie in `tfds_dir/downloads/manual` are not downloaded.

    Raises:
      UserError: it cannot be prepared.
    """
    splits = _splits(task.name, str(Path(tfds_dir).expanduser()))
    name = Path(split.files[0]).stem.replace("dev", "validation")
    if name not in splits:
        return None
    texts = task.tfds_texts or task.train.form.texts
    # Rows are stored shuffled; `idx` is their place in the original file.
    records = sorted(splits[name], key=lambda record: int(record["idx"]))
    rows = [_row(record, texts, task) for record in records]
    return Table(f"{tfds_dir}/glue/{task.name}, {name}", rows)


def _row(record: dict[str, Any], texts: Sequence[str], task: Task) -> Row:
    label = str(record["label"])
    if task.labels:  # the same order as in TFDS; -1 in a test set
        label = (*task.labels, "")[record["label"]]
    line = int(record["idx"]) + 1
    return Row(line, tuple(_text(record[name]) for name in texts), label)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


@functools.cache
def _splits(name: str, tfds_dir: str) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    # Registers "glue"; the package's own list of imports stops before it without h5py.
    import tensorflow_datasets.text.glue

    _extract_without_tensorflow()
    try:
        # Prepared copies that others host are TFRecords, which need TensorFlow.
        builder = tfds.builder(
            f"glue/{name}", data_dir=tfds_dir, file_format="array_record", try_gcs=False
        )
        with downloading():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    manual_dir=str(Path(tfds_dir) / "downloads" / "manual"),
                    try_download_gcs=False,
                )
            )
        return builder.as_data_source()
    except Exception as error:  # the library and its downloads raise all kinds
        raise UserError(
            f"config.glue.tfds_dir is {tfds_dir!r}: glue/{name} cannot be prepared "
            f"({reason(error)}); put its archive into {tfds_dir}/downloads/manual, or "
            "pass --config.glue.data_dir with the usual files and "
            "--config.glue.tfds_dir="
        ) from error


def _extract_without_tensorflow() -> None:
    """Gives the library's extractor the two functions of TensorFlow that it uses."""
    from tensorflow_datasets.core.download import extractor

    try:
        import tensorflow  # noqa: F401
    except ImportError:
        extractor.tf = types.SimpleNamespace(
            compat=types.SimpleNamespace(as_text=str),
            io=types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open)),
        )
