"""GLUE from TensorFlow Datasets, without TensorFlow."""

import dataclasses
import functools
import os
import threading
import time
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cramjax.config import GlueConfig
from cramjax.data import tfds
from cramjax.glue.tasks import Incomplete, Row, Split, Table, Task

ANSWER_S = 5.0  # how long a host may take to answer
# The files of the one task that is not an archive.
MRPC = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "data_mrpc_dev_ids.tsv")


@dataclasses.dataclass(frozen=True)
class Found:
    """What TFDS offers of some tasks. A task in no list is prepared already.

    Attributes:
      downloadable: tasks whose files are all present or can be downloaded.
      download_bytes: the size of those files that are not present.
      lacking: tasks with files that cannot be obtained.
      why: a sentence for each reason; it names the lacking tasks, their files and where
        to put them.
    """

    downloadable: list[Task]
    download_bytes: int
    lacking: list[Task]
    why: list[str]


def folder(glue: GlueConfig) -> Path:
    """Returns the folder where TFDS prepares and finds its data, for all runs."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(glue.tfds_dir or default).expanduser()


def look(tasks: Sequence[Task], glue: GlueConfig) -> Found:
    """Finds out what is prepared and what can be prepared; downloads nothing.

    All files are requested at once, which takes at most `ANSWER_S`.
    """
    urls: dict[str, list[str]] = {}  # of each task that is not prepared
    infos: dict[str, Any] = {}
    troubles: dict[str, list[tuple[Task, str]]] = {}  # {why: tasks and URLs}
    for task in tasks:
        try:
            builder = _builder(task.name, folder(glue))
        except Exception as error:  # for example, prepared in another file format
            troubles.setdefault(tfds.reason(error), []).append((task, ""))
            continue
        if not builder.data_path.exists():
            urls[task.name] = [
                url
                for url, info in builder.url_infos.items()
                if url == builder.builder_config.data_url
                or (task.name == "mrpc" and info.filename in MRPC)
            ]
            infos |= builder.url_infos
    manual = _manual(folder(glue))
    absent = {
        url
        for of_task in urls.values()
        for url in of_task
        if not (manual / infos[url].filename).exists()
    }
    for url, why in sorted(_unreachable(absent).items()):
        of_url = [(task, url) for task in tasks if url in urls.get(task.name, ())]
        troubles.setdefault(why, []).extend(of_url)
    lacking = [task for pairs in troubles.values() for task, _ in pairs]
    downloadable = [t for t in tasks if t.name in urls and t not in lacking]
    wanted = {url for t in downloadable for url in urls[t.name]} & absent
    return Found(
        downloadable,
        sum(infos[url].size for url in wanted),
        lacking,
        [_sentence(why, pairs, infos, glue) for why, pairs in troubles.items()],
    )


def _sentence(
    why: str, pairs: Sequence[tuple[Task, str]], infos: dict[str, Any], glue: GlueConfig
) -> str:
    """Returns which tasks are not scored for the same reason, and what to do."""
    titles = list(dict.fromkeys(task.title for task, _ in pairs))
    names = [infos[url].filename for _, url in pairs if url]
    hosts = sorted({urllib.parse.urlsplit(url).hostname for _, url in pairs if url})
    affected = f"{', '.join(titles)} {'is' if len(titles) == 1 else 'are'} not scored"
    own = (
        ("pass --config.glue.tfds_dir= and " if glue.tfds_dir else "")
        + "put the benchmark's own folders into config.glue.data_dir, "
        + repr(glue.data_dir)
    )
    if not names:
        return (
            f"{affected}: {folder(glue)}/glue cannot be used ({why}); pass another "
            f"--config.glue.tfds_dir, or {own}"
        )
    return (
        f"{affected}: {', '.join(names)} cannot be downloaded from {', '.join(hosts)} "
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
    """Returns the operating system's message, without what the libraries add to it."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def read(task: Task, split: Split, glue: GlueConfig) -> Table | None:
    """Returns a split's rows in the order of the original file, or None without it.

    Downloads and prepares what is missing, except files in downloads/manual.

    Raises:
      Incomplete: it cannot be prepared.
    """
    splits = _splits(task.name, task.title, folder(glue))
    name = Path(split.files[0]).stem.replace("dev", "validation")
    if name not in splits:
        return None
    # Rows are stored shuffled; `idx` is their position in the original file.
    records = sorted(splits[name], key=lambda record: int(record["idx"]))
    rows = []
    for record in records:
        texts = [record[key] for key in task.tfds_texts or task.train.form.texts]
        texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
        label = str(record["label"])
        if task.labels:  # the same order as in TFDS; -1 in a test set
            label = (*task.labels, "")[record["label"]]
        rows.append(Row(int(record["idx"]) + 1, tuple(texts), label))
    return Table(f"{folder(glue)}/glue/{task.name}, {name}", rows)


def _manual(tfds_dir: Path) -> Path:
    """Returns the folder for files that were downloaded by hand."""
    return tfds_dir / "downloads" / "manual"


def _builder(name: str, tfds_dir: Path) -> Any:
    # Registers "glue"; the package's own list of imports stops before it without h5py.
    import tensorflow_datasets.text.glue  # noqa: F401

    return tfds.builder(f"glue/{name}", tfds_dir)


@functools.cache
def _splits(name: str, title: str, tfds_dir: Path) -> dict[str, Any]:
    try:
        builder = _builder(name, tfds_dir)
        tfds.prepare(builder, _manual(tfds_dir))
        return builder.as_data_source()
    except Exception as error:  # the library and its downloads raise all kinds
        raise Incomplete(
            "tfds_dir",
            f"{title} is not scored: glue/{name} cannot be prepared in {tfds_dir} "
            f"({tfds.reason(error)}); put its files into {_manual(tfds_dir)}, or the "
            "benchmark's own folders into config.glue.data_dir",
        ) from error
