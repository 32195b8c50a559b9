"""Text from TensorFlow Datasets, without TensorFlow."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from cramjax.data.readers import File, Problems, Reading
from cramjax.errors import UserError
from cramjax.schema import DataConfig

RETRIES = 2  # of a download: a second; the library's ten take 3.5 minutes


@contextlib.contextmanager
def downloading() -> Iterator[None]:
    """Lets the library download while the block runs, quietly; soon it gives up.

    Its progress bars are for terminals only.
    """
    import tensorflow_datasets
    from tensorflow_datasets.core.download import downloader

    if not sys.stderr.isatty():
        tensorflow_datasets.disable_progress_bar()
    retries = logging.getLogger("urllib3.connectionpool")
    before = downloader.MAX_RETRIES, retries.level
    downloader.MAX_RETRIES = RETRIES
    retries.setLevel(logging.ERROR)  # each one warns
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before[0]
        retries.setLevel(before[1])


def reason(error: Exception) -> str:
    """Returns, in one line, why the library cannot find, download or prepare."""
    last = error.args[0] if error.args else None
    url = ""
    if isinstance(getattr(last, "reason", None), Exception):  # the last of the retries
        url, error = f" ({last.url})", last.reason
    return " ".join(f"{type(error).__name__}: {error}".split())[:300] + url


@dataclasses.dataclass(frozen=True)
class Shard(File):
    """One file of a prepared dataset.

    Attributes:
      folder: of the dataset's version, with dataset_info.json.
      split: e.g. "train".
      number: of the shard in the split.
    """

    folder: str
    split: str
    number: int

    def texts(self, reading: Reading, problems: Problems) -> Iterator[str]:
        """Yields the shard's documents.

        Raises:
          UserError: the dataset has no such field.
        """
        import tensorflow_datasets

        builder = tensorflow_datasets.builder_from_directory(self.folder)
        records = iter(builder.as_data_source(f"{self.split}[{self.number}shard]"))
        while True:
            try:
                record = next(records, None)
            except Exception as error:  # array_record's own kinds
                what = str(error).partition("\n")[0]
                problems[f"{self.path.name} is damaged: {what}"] += 1
                return
            if record is None:
                return
            if (text := reading.text(record, self.name, problems)) is not None:
                yield text


def shards(name: str, data: DataConfig) -> list[Shard]:
    """Returns the files of a dataset; prepares it first if it has to be.

    Args:
      name: as TFDS writes it, e.g. "lm1b" or "wiki40b/en:1.3.0", to be found or
        prepared where TFDS keeps its data; or the folder of a prepared version.
      data: its `split`.

    Raises:
      UserError: TFDS cannot find, prepare or read it.
    """
    # Slow to import, and it registers what it knows.
    import tensorflow_datasets
    import tensorflow_datasets.text

    try:
        if (Path(name).expanduser() / "dataset_info.json").exists():
            folder = Path(name).expanduser().resolve()
            builder = tensorflow_datasets.builder_from_directory(folder)
        else:
            # Google's prepared copies need TensorFlow, and so does its own format.
            builder = tensorflow_datasets.builder(
                name, try_gcs=False, file_format="array_record"
            )
            with downloading():
                builder.download_and_prepare(
                    download_config=tensorflow_datasets.download.DownloadConfig(
                        try_download_gcs=False
                    ),
                    file_format="array_record",
                )
        kind = builder.info.file_format.value
        if kind != "array_record":
            raise ValueError(f"it is kept as {kind}, needed is array_record")
        found = builder.info.splits
        if data.split not in found:
            raise ValueError(f"config.data.split is {data.split!r}: it has {[*found]}")
        paths = [Path(path) for path in found[data.split].filepaths]
    except Exception as error:  # of many kinds: TFDS, the network, the disk
        raise UserError(
            f"config.data.sources: tfds:{name} cannot be used ({reason(error)}); pass "
            "the name of a dataset that TFDS prepares without TensorFlow or Beam, or "
            "the folder of a prepared version"
        ) from error
    return [
        Shard(path, str(builder.data_path), data.split, number)
        for number, path in enumerate(paths)
    ]
