"""Scores without a run: from the weights of one, and from random ones."""

import json
import shutil

import pytest
from conftest import TINY, run_script
from test_pretrained import BERT, golden, write_folder

import cramjax
from cramjax import score
from cramjax.errors import UserError
from cramjax.glue import evaluate


@pytest.fixture(scope="module")
def trained(finished):
    """The workdir of a run that has scored the intents."""
    return finished[0]


def flags(*more):
    """The fine-tuning of the run, and nothing else of its config."""
    keys = [key for key in TINY if key.startswith("glue.") and "tasks" not in key]
    return ["--config=configs/small.py", *(f"--config.{k}" for k in keys), *more]


def found(workdir):
    tasks = json.loads((workdir / "glue.json").read_text())["tasks"]
    return {
        name: {start: part["scores"] for start, part in entry["starts"].items()}
        for name, entry in tasks.items()
    }


def test_a_checkpoint_scores_as_its_run_did(trained, tmp_path, monkeypatch):
    workdir = tmp_path / "w"
    more = [f"--checkpoint={trained}", f"--workdir={workdir}"]
    page = score.score(flags("--tasks=intents10", *more))
    assert found(workdir) == found(trained)
    assert "| Intents, 10 examples per class | accuracy | pretrained | 0.001 |" in page
    assert json.loads((workdir / "config.json").read_text())["seed"] == 1

    # More tasks join; what is scored is not scored again.
    calls = []
    finetune = evaluate.finetune

    def counted(*args, **kwargs):
        calls.append(args)
        return finetune(*args, **kwargs)

    monkeypatch.setattr(evaluate, "finetune", counted)
    score.score(flags("--tasks=acceptability,intents10", *more))
    assert list(found(workdir)) == ["intents10", "acceptability"]
    assert len(calls) == 2  # two starts


def test_another_projects_model(tmp_path, monkeypatch):
    """BERT's template, its token types and its own vocabulary."""
    _, tensors = golden("hf_bert_tiny")
    folder = write_folder(tmp_path / "theirs", BERT, tensors)
    own = tmp_path / "own"
    own.mkdir()
    rows = [f"w{i} w{i + 1}\tw{i + 2}\t{i % 2}" for i in range(1, 40)]
    for split in ("train", "dev"):
        (own / f"{split}.tsv").write_text("\n".join(["a\tb\tlabel", *rows]))
    seen = []
    finetune = evaluate.finetune

    def noted(model, glue, train, *args, **kwargs):
        first = [token for token in train.tokens_NxL[0].tolist() if token]
        seen.append((model, first, kwargs["pretrained"]))
        return finetune(model, glue, train, *args, **kwargs)

    monkeypatch.setattr(evaluate, "finetune", noted)
    for texts in ("('a','b')", "('a',)"):
        score.score(
            flags(
                "--tasks=own",
                f"--checkpoint={folder}",
                f"--workdir={tmp_path / texts}",
                f"--config.glue.own_dir={own}",
                f"--config.glue.own_texts={texts}",
                "--config.glue.own_label=label",
                "--config.glue.max_length=16",
                "--config.glue.starts=('pretrained',)",
            )
        )
    words = cramjax.load(folder).tokenizer
    first, second, third = (words.token_to_id(w) for w in ("w1", "w2", "w3"))
    assert seen[0][0].token_types == 2
    assert seen[0][1] == [4, first, second, 5, third, 5]
    assert seen[1][1] == [4, first, second, 5]
    assert seen[0][2]["embedding"]["word"].shape == (96, 32)
    page = (tmp_path / "('a',)" / "glue.md").read_text()
    assert "Track: **open** (an imported model). Not comparable with the paper" in page


def test_random_weights_need_no_checkpoint(trained, tmp_path, data_dir):
    keys = [f"--config.{key}" for key in TINY if "tasks" not in key]
    score.score(
        [
            "--config=configs/small.py",
            *keys,
            f"--config.data.dir={data_dir}",
            "--tasks=intents10",
            f"--workdir={tmp_path / 'w'}",
        ]
    )
    expected = found(trained)["intents10"]["random"]
    assert found(tmp_path / "w") == {"intents10": {"random": expected}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--config.model.width=64"],
            r"--config\.model\.width=64: .* have 32; leave it",
        ),
        (["--tasks=,"], r"config\.glue\.tasks is \(\): must be one or more"),
        (["--tasks="], "--tasks has no value: write --tasks=VALUE"),
        (["--tasks=colla"], r"config\.glue\.tasks: 'colla' is not one of"),
        (
            ["--tasks=cola", "--data_dir=configs"],
            r"CoLA/train\.tsv is missing; config\.glue\.data_dir is 'configs'",
        ),
        (
            ["--tasks=cola", "--config.glue.data_dir=configs", "--data_dir=no"],
            r"config\.glue\.data_dir is 'configs'",
        ),
        (
            ["--tasks=cb", "--data_dir=no"],
            r"CB/train\.jsonl is .*superglue_dir is 'no'",
        ),
        (["--task=cola"], "--task: no such flag; did you mean --tasks or --con"),
    ],
)
def test_mistakes_cost_no_compute(trained, tmp_path, more, message):
    more = [f"--checkpoint={trained}", f"--workdir={tmp_path / 'w'}", *more]
    with pytest.raises(UserError, match=message):
        score.score(flags(*more))
    assert not (tmp_path / "w").exists()


def test_the_folder_of_a_pretraining_is_not_written_into(trained):
    before = {path.name: path.stat().st_mtime_ns for path in trained.iterdir()}
    for more in ([f"--checkpoint={trained}"], []):
        with pytest.raises(UserError) as error:
            score.score(flags("--tasks=intents10", f"--workdir={trained}", *more))
        assert str(error.value) == (
            f"--workdir={trained} is the folder of a pretraining, not of scores alone: "
            f"pass --checkpoint={trained} to score its weights, and another --workdir "
            "(--checkpoint's evaluation/ if it is left out)"
        )
    assert {p.name: p.stat().st_mtime_ns for p in trained.iterdir()} == before


def test_keys_that_say_what_the_checkpoint_has_are_accepted(trained, tmp_path):
    """Averages are, where they are scored: `glue.starts` is checked against them.

    And so is what was left to the device, which has chosen.
    """
    more = [
        f"--checkpoint={trained}",
        f"--workdir={tmp_path}",
        "--tasks=intents10",
        "--config.averaging.ema_decay=0.9",
        "--config.glue.starts=('ema',)",
        "--config.micro_batch=0",
        "--config.model.attention=auto",
        "--config.seed=5",
    ]
    score.score(flags(*more))
    assert list(found(tmp_path)["intents10"]) == ["ema"]
    recorded = json.loads((tmp_path / "config.json").read_text())
    assert (recorded["seed"], recorded["micro_batch"]) == (5, 4)


def test_scores_of_other_weights_are_not_mixed(trained, tmp_path):
    workdir = tmp_path / "w"
    more = [f"--workdir={workdir}", "--tasks=intents10"]
    score.score(flags(f"--checkpoint={trained}", *more))
    other = shutil.copytree(trained, tmp_path / "other")
    message = (
        r"has the scores of .*/finished'.*, not of .*/other'.*: pass another --workdir"
    )
    with pytest.raises(UserError, match=message):
        score.score(flags(f"--checkpoint={other}", *more))


def test_a_folder_without_a_finished_pretraining_is_named(tmp_path):
    result = run_script(
        "evaluate_glue.py",
        "--config=configs/small.py",
        f"--checkpoint={tmp_path}",
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: --checkpoint={tmp_path}: no finished pret")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
