"""Every file that is read back, cut in half, emptied, or with one bit changed.

The same command then gives the same result to the bit, or refuses in one line that
names the file. A sample of the cases runs by default, the others are slow.
"""

import gc
import hashlib
import random
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from test_prepare import content, small_shards, write_texts  # noqa: F401, a fixture
from test_pretrain import stop_after

from cramjax import files
from cramjax.checkpoints import classifier
from cramjax.checkpoints.load import load
from cramjax.data import prepare
from cramjax.errors import UserError
from cramjax.model.encoder import Classifier
from cramjax.run import run

HOW = {
    "cut": lambda data, at: data[: len(data) // 2],
    "empty": lambda data, at: b"",
    "flip": lambda data, at: (
        data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
    ),
}
NOT_READ = (".png", ".md", ".html")
# Orbax gives up reading and leaves its event loop with callbacks that nobody awaits.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
# How many cases, of how many flips for each file.
few, all_of = pytest.param(1, marks=()), pytest.param(4, marks=pytest.mark.slow)
each_size = pytest.mark.parametrize("flips", [few, all_of])


def digest(*results):
    """Returns a hash of texts, numbers and arrays, however nested."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(results):
        found.update(leaf.encode() if isinstance(leaf, str) else np.asarray(leaf))
    return found.hexdigest()


class Lab:
    """A folder that is as it was before every case."""

    def __init__(self, folder, read):
        """Keeps a copy; `read` is a command, and returns what it gives."""
        self.folder, self.read = folder, read
        self.kept = shutil.copytree(folder, folder.with_name(f"{folder.name}-kept"))
        self.expected = read()

    def cases(self, flips, unread=NOT_READ):
        """Yields (file, how, place) of all its files."""
        for path in sorted(self.kept.rglob("*")):
            name = str(path.relative_to(self.kept))
            size = path.stat().st_size if path.is_file() else 0
            if not size or any(part in name for part in unread):
                continue
            generator = random.Random(zlib.crc32(name.encode()))
            yield from ((name, how, 0) for how in ("cut", "empty"))
            yield from ((name, "flip", generator.randrange(size)) for _ in range(flips))

    def outcome(self, name, how, at):
        """Damages a file and runs the command; returns "same" or "refused"."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.kept, self.folder)
        path = self.folder / name
        path.write_bytes(HOW[how](path.read_bytes(), at))
        try:
            found = self.read()
        except UserError as error:
            message = str(error)
            assert "\n" not in message and len(message) < 600, message
            parents = {p.name for p in path.parents if p.name.isdigit()}  # checkpoints
            assert any(n in message for n in (path.name, *parents)), (name, message)
            return "refused"
        assert found == self.expected, f"{name}: {how} at {at} gives another result"
        return "same"

    def check(self, flips, count, **options):
        """Runs some cases, or all with many flips; returns {(file, how): outcomes}."""
        cases = list(self.cases(flips, **options))
        if flips == 1:
            cases = random.Random(22).sample(cases, count)
        found = {}
        for case in cases:
            found.setdefault(case[:2], set()).add(self.outcome(*case))
        gc.collect()  # what Orbax left; its warnings would end a later test
        return found


@each_size
def test_a_finished_workdir(finished, tiny, tmp_path, flips):
    workdir = shutil.copytree(finished[0], tmp_path / "w" / "finished")

    def read():
        named_params, model = run(tiny, workdir), load(workdir)
        report = (workdir / "report.md").read_text()
        scores = files.read_json(workdir / "glue.json", "")
        return digest(named_params, model.encode(["a text"]), report, scores)

    Lab(workdir, read).check(flips, 3, unread=(*NOT_READ, "checkpoints"))


@each_size
def test_its_checkpoint(finished, tmp_path, flips):
    workdir = shutil.copytree(finished[0], tmp_path / "w" / "finished")
    lab = Lab(workdir, lambda: digest(load(workdir, step=40).params))
    found = lab.check(flips, 3, unread=(*NOT_READ, "predictions", "weights"))
    arrays = [p for p in (lab.kept / "checkpoints").rglob("*/d/*") if p.is_file()]
    # TensorStore does not notice. Which file has the weights differs from run to run.
    flips = [(path, at) for at in range(9, 90_000, 20_000) for path in arrays]
    assert any(
        lab.outcome(str(path.relative_to(lab.kept)), "flip", at) == "refused"
        for path, at in flips
        if at < path.stat().st_size
    ), found
    gc.collect()


@pytest.mark.slow
def test_an_unfinished_run_and_its_corpus(tmp_path):
    lab = tmp_path / "lab"
    changes = ("glue.tasks=()", "data.max_chars=100000", "data.held_out_share=0.3")
    config = tiny_config(lab / "data", *changes, "checkpoint.every_minutes=1e-9")
    corpus = prepare.prepare(config)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(35, config, corpus, lab / "run", patch)
    found = Lab(lab, lambda: digest(run(config, lab / "run"))).check(1, 40)
    assert "refused" in set().union(*found.values())


@each_size
def test_an_unfinished_corpus(tmp_path, small_shards, monkeypatch, flips):  # noqa: F811
    write_texts(tmp_path / "texts", files=1, documents=100)
    config = tiny_config(
        tmp_path / "lab",
        f"data.sources={tmp_path}/texts/*.txt",
        "model.vocab_size=42",
        "data.held_out_share=0.2",
    )

    def interrupted(*_):  # not by a signal: a shell may have had it ignored
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "_finish", interrupted)
        prepare.prepare(config)
    lab = Lab(tmp_path / "lab", lambda: content(prepare.prepare(config).path))
    lab.check(flips, 4)


@each_size
def test_a_classifier(tiny, corpus, tmp_path, flips):
    folder = tmp_path / "kept"
    module = Classifier(tiny.model, classes=2, head_width=16)
    init = jax.jit(module.init)
    params = init(jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    saved = classifier.SavedClassifier(
        model=tiny.model,
        params=params,
        tokenizer=corpus.tokenizer,
        labels=("a", "b"),
        columns=("x",),
        head_width=16,
        pooling="cls",
        max_length=32,
        empty_second=True,
    )
    classifier.save(folder, saved, {})
    found = Lab(
        folder, lambda: digest(classifier.load(folder).outputs([("a text",)]))
    ).check(flips, 4)
    assert set().union(*found.values()) == {"refused"}
