"""GLUE's archives with made-up rows, a host on the loopback interface, and trials."""

import contextlib
import functools
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cramjax.glue import evaluate
from cramjax.glue.finetune import Finetuned


def finetuned(outputs):
    """Returns trials with these outputs_TxNxC, as `finetune` does."""
    trials = len(outputs[0])
    return Finetuned(outputs, np.zeros(trials, int), trials)


def untrained(model, glue, train, sets, outputs, **_):
    """Takes the place of `finetune`: two trials with outputs that are all 0."""
    return finetuned([np.zeros((2, len(rows), outputs)) for rows in sets])


def evaluated(config, tokenizer, workdir, weights=None):
    """Returns the scores of the config's tasks, as a run does."""
    chosen = evaluate.fetch(config, evaluate.check(config, workdir))
    return evaluate.evaluate(config, weights or {}, tokenizer, workdir, chosen)


def tsv(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def mnli(*labels):
    head = ("index", "sentence1", "sentence2", "gold_label")
    return tsv(
        head,
        *((str(i), f"A {i}.", 'B "q.', label) for i, label in enumerate(labels)),
    )


ARCHIVES = {
    "CoLA.zip": {
        "CoLA/train.tsv": tsv(*(("x", str(i % 2), "", f"S {i}.") for i in range(40))),
        "CoLA/dev.tsv": tsv(("x", "1", "", 'D "q.')),
        "CoLA/test.tsv": tsv(("index", "sentence"), ("0", "T.")),
    },
    "STS-B.zip": {
        f"STS-B/{name}.tsv": tsv(
            ("index", "sentence1", "sentence2", "score"), ("0", "A.", "B.", "3.800")
        )
        for name in ("train", "dev", "test")
    },
    "MNLI.zip": {
        "MNLI/train.tsv": mnli("contradiction", "entailment", "neutral"),
        "MNLI/dev_matched.tsv": mnli("neutral"),
        "MNLI/dev_mismatched.tsv": mnli("neutral", "contradiction"),
        "MNLI/test_matched.tsv": mnli("-1").replace("gold_label", "other"),
        "MNLI/test_mismatched.tsv": mnli("-1").replace("gold_label", "other"),
    },
}
_PAIRS = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
MRPC = {
    "msr_paraphrase_train.txt": "\ufeff"
    + tsv(_PAIRS, ("1", "7", "8", "A.", "B."), ("0", "1", "2", "C.", "D.")),
    "msr_paraphrase_test.txt": "\ufeff" + tsv(_PAIRS, ("1", "3", "4", "E.", "F.")),
    "data_mrpc_dev_ids.tsv": tsv(("1", "2")),
}


def write(folder: Path) -> Path:
    """Writes all archives and files; returns the folder."""
    folder.mkdir(parents=True)
    for name, members in ARCHIVES.items():
        with zipfile.ZipFile(folder / name, "w") as archive:
            for member, text in members.items():
                archive.writestr(member, text)
    for name, text in MRPC.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def expect(folder: Path, patch: pytest.MonkeyPatch, address: str = "") -> None:
    """Makes TFDS expect a folder's files instead of the real ones.

    Args:
      folder: with them.
      patch: undoes it.
      address: where they are served; "" = the real hosts.
    """
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.text import glue

    known = glue.Glue.url_infos
    moved = {}
    for url, info in list(known.items()):
        path = folder / info.filename
        if path.exists():
            moved[url] = f"{address}/{path.name}" if address else url
            patch.delitem(known, url)
            patch.setitem(known, moved[url], checksums.compute_url_info(path))
    for config in glue.Glue.BUILDER_CONFIGS:
        patch.setattr(config, "data_url", moved.get(config.data_url, config.data_url))
    for name in ("_MRPC_DEV_IDS", "_MRPC_TRAIN", "_MRPC_TEST"):
        patch.setattr(glue, name, moved[getattr(glue, name)])


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """Serves a folder's files to TFDS until it is shut down, or the block ends."""
    handler = functools.partial(_Handler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    expect(folder, patch, f"http://127.0.0.1:{server.server_port}")
    patch.setenv("no_proxy", "127.0.0.1")
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
