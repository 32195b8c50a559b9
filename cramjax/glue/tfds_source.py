"""GLUE from TensorFlow Datasets, without TensorFlow."""

import contextlib
import dataclasses
import functools
import io
import os
import threading
import time
import types
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cramjax.config import GlueConfig
from cramjax.data.tfds import downloading, reason
from cramjax.glue.tasks import Incomplete, Row, Split, Table, Task

ANSWER_S = 5.0  # a host gets so long to say that it has a file
# The files of the one task that is not an archive.
MRPC = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "data_mrpc_dev_ids.tsv")


@dataclasses.dataclass(frozen=True)
class Found:
    """What TFDS has of some tasks. Those in no list are prepared already.

    Attributes:
      downloadable: tasks all of whose files are here or can be downloaded.
      download_bytes: of the files among them that are not here.
      lacking: tasks that cannot be had.
      why: sentences that name the lacking tasks, their files, and where to put them.
    """

    downloadable: list[Task]
    download_bytes: int
    lacking: list[Task]
    why: list[str]


def folder(glue: GlueConfig) -> Path:
    """Returns where TFDS prepares and finds its data, for all runs."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(glue.tfds_dir or default).expanduser()


def look(tasks: Iterable[Task], glue: GlueConfig) -> Found:
    """Finds out what is prepared and what could be, and downloads nothing.

    The hosts are asked for all files at once, which takes `ANSWER_S` at most.
    """
    place = _manual(folder(glue))
    urls: dict[str, list[str]] = {}  # of each task that is not prepared
    infos: dict[str, Any] = {}
    troubles: dict[str, list[tuple[Task, str]]] = {}  # {why: tasks and URLs}
    tasks = list(tasks)
    for task in tasks:
        try:
            builder = _builder(task.name, folder(glue))
        except Exception as error:  # what is there is of another kind, for instance
            troubles.setdefault(reason(error), []).append((task, ""))
            continue
        if not builder.data_path.exists():
            urls[task.name] = [
                url
                for url, info in builder.url_infos.items()
                if url == builder.builder_config.data_url
                or (task.name == "mrpc" and info.filename in MRPC)
            ]
            infos |= builder.url_infos
    absent = {
        url
        for url in {url for of_task in urls.values() for url in of_task}
        if not (place / infos[url].filename).exists()
    }
    for url, why in sorted(_unreachable(absent).items()):
        for task in tasks:
            if url in urls.get(task.name, ()):
                troubles.setdefault(why, []).append((task, url))
    lacking = {task.name for pairs in troubles.values() for task, _ in pairs}
    downloadable = [t for t in tasks if t.name in urls and t.name not in lacking]
    wanted = {url for t in downloadable for url in urls[t.name]} & absent
    return Found(
        downloadable,
        sum(infos[url].size for url in wanted),
        [task for task in tasks if task.name in lacking],
        [_sentence(why, pairs, infos, glue) for why, pairs in troubles.items()],
    )


def _sentence(
    why: str, pairs: Sequence[tuple[Task, str]], infos: dict[str, Any], glue: GlueConfig
) -> str:
    """Returns which tasks are not scored for the same reason, and the way out."""
    titles = list(dict.fromkeys(task.title for task, _ in pairs))
    names = [infos[url].filename for _, url in pairs if url]
    hosts = sorted({urllib.parse.urlsplit(url).hostname for _, url in pairs if url})
    start = f"{', '.join(titles)} {'is' if len(titles) == 1 else 'are'} not scored"
    own = (
        "pass --config.glue.tfds_dir= and put the benchmark's own folders into "
        if glue.tfds_dir
        else "put the benchmark's own folders into "
    ) + f"config.glue.data_dir, {glue.data_dir!r}"
    if not names:
        return (
            f"{start}: {folder(glue)}/glue cannot be used ({why}); pass another "
            f"--config.glue.tfds_dir, or {own}"
        )
    return (
        f"{start}: {', '.join(names)} cannot be downloaded from {', '.join(hosts)} "
        f"({why}); put {'it' if len(names) == 1 else 'them'} into "
        f"{_manual(folder(glue))}, or {own}"
    )


def _unreachable(urls: Iterable[str]) -> dict[str, str]:
    """Returns {URL: why it cannot be downloaded}; the others answer."""
    import requests  # TFDS downloads with it, too

    answers = dict.fromkeys(urls, f"no answer within {ANSWER_S:g} s")

    def ask(url: str) -> None:
        try:
            # Not HEAD, which some hosts refuse; the content is not read.
            with requests.get(url, stream=True, timeout=ANSWER_S) as response:
                status = f"HTTP status {response.status_code}"
                answers[url] = "" if response.ok else status
        except requests.Timeout:
            pass
        except OSError as error:  # all of the package's errors are
            answers[url] = _cause(error)

    # No pool: it would wait for a thread whose name server does not answer.
    threads = [threading.Thread(target=ask, args=[url], daemon=True) for url in answers]
    for thread in threads:
        thread.start()
    end = time.monotonic() + ANSWER_S
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    return {url: why for url, why in dict(answers).items() if why}


def _cause(error: BaseException) -> str:
    """Returns what the system said, without the libraries' words around it."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def read(task: Task, split: Split, glue: GlueConfig) -> Table | None:
    """Returns a split's rows in the order of the original file, or None without it.

    What is not prepared yet is downloaded and prepared; files in downloads/manual are
    not downloaded.

    Raises:
      Incomplete: it cannot be prepared.
    """
    splits = _splits(task.name, task.title, folder(glue))
    name = Path(split.files[0]).stem.replace("dev", "validation")
    if name not in splits:
        return None
    texts = task.tfds_texts or task.train.form.texts
    # Rows are stored shuffled; `idx` is their place in the original file.
    records = sorted(splits[name], key=lambda record: int(record["idx"]))
    rows = [_row(record, texts, task) for record in records]
    return Table(f"{folder(glue)}/glue/{task.name}, {name}", rows)


def _row(record: dict[str, Any], texts: Sequence[str], task: Task) -> Row:
    label = str(record["label"])
    if task.labels:  # the same order as in TFDS; -1 in a test set
        label = (*task.labels, "")[record["label"]]
    line = int(record["idx"]) + 1
    return Row(line, tuple(_text(record[name]) for name in texts), label)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _manual(tfds_dir: Path) -> Path:
    """Returns where files that were fetched by hand are looked for."""
    return tfds_dir / "downloads" / "manual"


def _builder(name: str, tfds_dir: Path) -> Any:
    import tensorflow_datasets as tfds

    # Registers "glue"; the package's own list of imports stops before it without h5py.
    import tensorflow_datasets.text.glue

    # Prepared copies that others host are TFRecords, which need TensorFlow.
    return tfds.builder(
        f"glue/{name}",
        data_dir=str(tfds_dir),
        file_format="array_record",
        try_gcs=False,
    )


@functools.cache
def _splits(name: str, title: str, tfds_dir: Path) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    _extract_without_tensorflow()
    try:
        builder = _builder(name, tfds_dir)
        with downloading(), contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    manual_dir=str(_manual(tfds_dir)), try_download_gcs=False
                )
            )
        return builder.as_data_source()
    except Exception as error:  # the library and its downloads raise all kinds
        raise Incomplete(
            "tfds_dir",
            f"{title} is not scored: glue/{name} cannot be prepared in {tfds_dir} "
            f"({reason(error)}); put its files into {_manual(tfds_dir)}, or the "
            "benchmark's own folders into config.glue.data_dir",
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
