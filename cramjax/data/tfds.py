"""Text from TensorFlow Datasets, without TensorFlow: all that touches its internals."""

import contextlib
import dataclasses
import io
import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cramjax.data.readers import File, ReadContext, Record
from cramjax.errors import UserError

RETRIES = 2  # of a download: a second; the library's ten take 3.5 minutes


def builder(name: str, data_dir: Path | None = None) -> Any:
    """Returns the builder of a dataset, for example "wiki40b/en:1.3.0".

    Its module has been imported. `data_dir` is where the data is found and prepared.
    """
    import tensorflow_datasets

    # Google's prepared copies are TFRecords, which need TensorFlow.
    return tensorflow_datasets.builder(
        name,
        data_dir=None if data_dir is None else str(data_dir),
        file_format="array_record",
        try_gcs=False,
    )


def prepare(builder: Any, manual_dir: Path | None = None) -> None:
    """Downloads and prepares a dataset if necessary, quietly and with few retries.

    `manual_dir` has the files that the library does not download.
    """
    import tensorflow_datasets
    from tensorflow_datasets.core.download import downloader, extractor

    if not sys.stderr.isatty():
        tensorflow_datasets.disable_progress_bar()
    downloader.MAX_RETRIES = RETRIES
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    extractor.tf = types.SimpleNamespace(  # all that it uses of TensorFlow
        compat=types.SimpleNamespace(as_text=str),
        io=types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open)),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            download_config=tensorflow_datasets.download.DownloadConfig(
                manual_dir=None if manual_dir is None else str(manual_dir),
                try_download_gcs=False,
            ),
            file_format="array_record",
        )


def reason(error: Exception) -> str:
    """Returns, in one line, why the library cannot find, download or prepare."""
    last = error.args[0] if error.args else None
    url = ""
    if isinstance(getattr(last, "reason", None), Exception):  # the last of the retries
        url, error = f" ({last.url})", last.reason
    return " ".join(f"{type(error).__name__}: {error}".split())[:500] + url


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsFile(File):
    """One file, with a number in its split, of a prepared dataset in a folder."""

    damage = (Exception,)  # array_record's own kinds
    folder: str
    split: str
    number: int

    def records(self, context: ReadContext) -> Iterator[Record]:
        """Yields the file's records."""
        import tensorflow_datasets

        builder = tensorflow_datasets.builder_from_directory(self.folder)
        yield from builder.as_data_source(f"{self.split}[{self.number}shard]")


def find(name: str, split: str) -> list[TfdsFile]:
    """Returns the files of a dataset, which is prepared first if necessary.

    Args:
      name: of a dataset where TFDS keeps its data; or the folder of a prepared version.
      split: see `config.data.split`.

    Raises:
      UserError: TFDS cannot find, prepare or read it.
    """
    # Slow to import, and it registers what it knows.
    import tensorflow_datasets
    import tensorflow_datasets.text

    try:
        if (Path(name).expanduser() / "dataset_info.json").exists():
            folder = Path(name).expanduser().resolve()
            dataset = tensorflow_datasets.builder_from_directory(folder)
        else:
            dataset = builder(name)
            prepare(dataset)
        kind = dataset.info.file_format.value
        if kind != "array_record":
            raise ValueError(f"it is stored as {kind}, not as array_record")
        found = dataset.info.splits
        if split not in found:
            raise ValueError(f"config.data.split is {split!r}: it has {[*found]}")
        paths = [Path(path) for path in found[split].filepaths]
    except Exception as error:  # of many kinds: TFDS, the network, the disk
        raise UserError(
            f"config.data.sources: tfds:{name} cannot be used ({reason(error)}); pass "
            "the name of a dataset that TFDS prepares without TensorFlow or Beam, or "
            "the folder of a prepared version"
        ) from error
    folder = str(dataset.data_path)
    return [
        TfdsFile(path=p, size=p.stat().st_size, folder=folder, split=split, number=n)
        for n, p in enumerate(paths)
    ]
