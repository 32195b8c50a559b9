"""The whole job: prepare, pretrain, evaluate, report; what is complete is skipped."""

import json
from pathlib import Path

import jax

from cramjax import files, report
from cramjax.config import OPERATIONAL_KEYS, Config, flatten, to_dict
from cramjax.data.prepare import prepare
from cramjax.errors import UserError
from cramjax.glue import evaluate
from cramjax.pretrain import SUMMARY, pretrain

CONFIG = "config.json"
CORPUS = "corpus.txt"


def run(config: Config, workdir: Path) -> None:
    """Does what is left to do in a workdir, and writes report.md.

    Raises:
      UserError: a mistake that can be seen before compute is spent.
      Interrupted: a signal came during pretraining; the state is saved.
    """
    evaluate.check(config)
    if not (workdir / SUMMARY).exists():
        check_platform(config)
    check_workdir(workdir, config)
    corpus = prepare(config)
    workdir.mkdir(parents=True, exist_ok=True)
    check_corpus(workdir, corpus.path)
    files.write_json(workdir / CONFIG, to_dict(config))
    params, summary = pretrain(config, corpus, workdir)
    print(
        f"held-out loss {summary['held_out_loss']:.3f} nats, unigram entropy "
        f"{summary['unigram_entropy']:.3f}, after {summary['tokens']:,} tokens"
    )
    results = evaluate.evaluate(config, params, corpus.tokenizer(), workdir)
    path = report.write(config, corpus, summary, results, workdir)
    print(f"report: {path}")


def check_platform(config: Config) -> None:
    """Refuses to pretrain a GPU config without a GPU.

    Raises:
      UserError: `config.platform` is "gpu" and JAX sees none.
    """
    if config.platform == "gpu" and jax.default_backend() != "gpu":
        raise UserError(
            f"config.platform is 'gpu', but JAX sees only {jax.default_backend()}: "
            "install the extra cuda12 or cuda13, or pass --config.platform=any"
        )


def check_corpus(workdir: Path, corpus: Path) -> None:
    """Notes the corpus in the workdir; refuses another one than was noted there.

    Raises:
      UserError: the text has changed since the run began.
    """
    path = workdir / CORPUS
    before = path.read_text().strip() if path.exists() else corpus.name
    if before != corpus.name:
        raise UserError(
            f"--workdir={workdir} was trained on the corpus {before}, and "
            f"config.data.sources now gives {corpus.name}: pass another --workdir, "
            "or bring the text back"
        )
    files.write_text(path, corpus.name + "\n")


def check_workdir(workdir: Path, config: Config) -> None:
    """Refuses a workdir in which another config has run.

    Raises:
      UserError: it holds a run with another config; the first differing key is named.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file: pass a folder")
    path = workdir / CONFIG
    if not path.exists():
        return
    old, new = flatten(json.loads(path.read_text())), flatten(to_dict(config))
    for key in sorted({*old, *new} - OPERATIONAL_KEYS):
        if old.get(key) != new.get(key):
            raise UserError(
                f"--workdir={workdir} holds a run with config.{key}={old.get(key)!r}, "
                f"not {new.get(key)!r}: pass another --workdir, or that value"
            )
