"""The report's sentences and figures, from numbers made up for it."""

import dataclasses
import json

import pytest
from conftest import tiny_config
from test_glue_metrics import nine

from cramjax import figures, report
from cramjax.config import CurriculumConfig, load
from cramjax.training.clock import CHARGED, FREE

SUMMARY = {
    "held_out_loss": 4.0,
    "held_out_accuracy": 0.25,
    "bits_per_byte": 1.5,
    "averages": {"ema": 3.9},
    "word_order": {"model": 92.0, "bigram": 80.0, "pairs": 400},
    "unigram_entropy": 6.4,
    "train_loss": 4.1,
    "tokens": 4000,
    "passes": 0.5,
    "micro_steps": 40,
    "updates": 10,
    "elapsed_s": 60.0,
    "first_step_s": 2.5,
    "seconds": dict.fromkeys((*CHARGED, *FREE), 0.0) | {"training": 60.0},
    "tokens_per_s": 66.7,
    "model_flops": 1e12,
    "mfu": None,
    "peak_memory_bytes": None,
    "energy_kwh": None,
    "parameters": 12345,
    "skipped": 0,
    "device": "some device",
    "code": "9.9, commit abc",
    "versions": {"Python": "3.11.0", "jax": "0.10.7"},
    "command": "python -m cramjax.main --config=my.py",
}
MANIFEST = {
    "name": "letters-0123",
    "documents": {"train": 90, "held_out": 7, "filtered": 3},
    "tokens": {"train": 8000, "held_out": 600},
    "text": [{"source": "letters/*.txt", "chars": 2_000_000, "share": 1.0}],
}
EVENTS = [
    {"step": 10, "progress": 0.25, "tokens": 1000, "loss": 6.0},
    {"step": 20, "progress": 0.5, "tokens": 2000, "loss": 5.0},
    {"event": "resumed", "step": 20},
    {"event": "validation", "step": 20, "tokens": 2000, "loss": 5.1},
    {"step": 30, "progress": 0.75, "tokens": 3000, "loss": 4.5},
    {"event": "stepped_back", "step": 30},
    {"step": 40, "progress": 1.0, "tokens": 4000, "loss": 4.1},
]


@pytest.fixture
def config(data_dir):
    config = tiny_config(data_dir, "glue.tasks=()", "data.licence=CC0")
    stages = CurriculumConfig(lengths=(8, 32), starts=(0.1, 0.75), unfold=True)
    return dataclasses.replace(config, curriculum=stages)


@pytest.fixture
def events():
    rates = {"learning_rate": 1e-3, "batch_size": 4}
    return [line if "event" in line else line | rates for line in EVENTS]


def written(config, events, summary, workdir):
    text = "".join(json.dumps(line) + "\n" for line in events)
    (workdir / "metrics.jsonl").write_text(text)
    return report.write(report.Run(config, MANIFEST, summary, {}, workdir)).read_text()


def test_the_report_names_what_the_run_was_made_of(config, events, tmp_path):
    seconds = SUMMARY["seconds"] | {"validation": 7.0}
    summary = SUMMARY | {"seconds": seconds, "devices": 2}
    summary |= {"peak_memory_bytes": 3e9, "mfu": 0.4, "energy_kwh": 0.5}
    text = written(config, events, summary, tmp_path)
    for named in (
        "| training time | 60 s: training 60 s |",
        "peak, over the training time | 40.0% |",
        "| peak device memory in the last session | 3.0 GB |",
        "validation included | 0.5 kWh |",
        "| in addition, not counted | validation 7 s |",
        "| speed | 67 tokens/s, 33 on each of 2 GPUs |",
        "python -m cramjax.main --config=my.py",
        "2 layers, width 32, 2 heads, gated feed-forward width 64",
        "12,345 parameters",
        "letters/*.txt: 2.0 million characters",
        "| licence | CC0 |",
        "cramjax 9.9, commit abc; Python 3.11.0, jax 0.10.7 |",
        "some device",
        "(higher is better) | **92.0 %** (+-2.7) | bigram model 80.0 %, chance 50 % |",
        "held-out loss, ema of the weights | 3.900",
        "| optimizer.learning_rate | 0.004 | 0.001 |",
        "| curriculum.lengths | 8, 32 | - |",
    ):
        assert named in text, named
    assert "data.dir" not in text  # nor other keys that change no result


def test_a_report_of_an_older_version_says_what_is_not_known(config, events, tmp_path):
    new = ("word_order", "versions", "command")
    summary = {key: value for key, value in SUMMARY.items() if key not in new}
    text = written(config, events, summary, tmp_path)
    assert "word order" not in text.lower()
    assert "the versions of Python and its libraries were not recorded" in text
    assert "made by\n\n    not recorded" in text


@pytest.mark.parametrize(
    ("loss", "word_order", "sentence"),
    [
        (6.3, 49.0, "hardly better than token frequencies**: its held-out loss is not"),
        (6.5, None, "The model is no better than token frequencies**: its held-out"),
        (6.3, 49.0, "and its word order is no better than chance. It needs more"),
        (6.3, 90.0, "though it has begun to learn word order. It needs more"),
        (6.3, None, "not clearly below the unigram entropy. It needs more training"),
        (4.0, 51.0, "but **its word order is no better than chance**"),
        (4.0, 70.0, "and the model recognizes the original word order less often than"),
        (4.0, 81.0, "recognizes the original word order about as often as the bigram"),
        (
            4.0,
            92.0,
            "38% below what token frequencies alone would give, and the model "
            "recognizes the original word order more often than the bigram model (92.0",
        ),
        (4.0, None, "38% below what token frequencies alone would give."),
    ],
)
def test_the_numbers_are_put_into_words(config, loss, word_order, sentence, tmp_path):
    order = word_order and {"model": word_order, "bigram": 80.0, "pairs": 400}
    summary = SUMMARY | {"held_out_loss": loss, "word_order": order}
    run = report.Run(config, MANIFEST, summary, {}, tmp_path)
    assert sentence in report.verdict(run)


def test_stages_and_restarts_are_marked_in_both_figures(config, events):
    def marks(axes):
        lines = [line for line in axes.lines if len(set(line.get_xdata())) == 1]
        return sorted(float(line.get_xdata()[0]) for line in lines)

    [axes] = figures.loss(config, events, SUMMARY).axes
    names = [text.get_text() for text in axes.texts]
    assert names == ["length 8", "length 32"]
    assert marks(axes) == pytest.approx([0.0, 0.002, 0.003, 0.003])
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"resumed", "stepped back"} <= set(legend)
    for axes in figures.panels(config, events, figures.SCHEDULE).axes:
        assert marks(axes) == pytest.approx([0.0, 50.0, 75.0, 75.0])


def test_skipped_micro_batches_are_marked_where_they_were_seen(config, events):
    for line, skipped in zip(events, (0, 2, None, None, 2, None, 3), strict=True):
        if skipped is not None:
            line["skipped"] = skipped
    [axes] = figures.loss(config, events, SUMMARY).axes
    [rug] = [x for x in axes.lines if x.get_label() == "micro-batches skipped"]
    assert rug.get_xdata() == pytest.approx([0.002, 0.004])


@pytest.mark.parametrize(
    ("changes", "overrides", "sentence"),
    [
        ({}, (), "**80.4**, that of the paper's model 80.4."),
        ({}, ("glue.trials=3",), "80.4, but it was not fine-tuned as in the paper"),
        (
            {"cola": None},
            (),
            "It was not scored on all rows of all nine numbers of GLUE",
        ),
    ],
)
def test_it_is_compared_with_the_papers_model(changes, overrides, sentence, tmp_path):
    results = {n: x for n, x in (nine() | changes).items() if x}
    config = load("configs/default.py", overrides)
    summary = SUMMARY | {"model_flops": 2.7e18, "elapsed_s": 86_400.0}
    text = report._beside_the_paper(
        report.Run(config, MANIFEST, summary, results, tmp_path)
    )
    assert sentence in text
    assert "took 24.0 hours on some device and 2.7e+18 model FLOPs, 50 % of" in text


def test_what_went_wrong_is_said(config, events, tmp_path):
    seconds = SUMMARY["seconds"] | {"lost": 12.4}
    summary = SUMMARY | {"skipped": 3, "seconds": seconds}
    manifest = MANIFEST | {"problems": {"documents that are not UTF-8": 4}}
    run = report.Run(config, manifest, summary, {}, tmp_path)
    assert report._irregular(run, events) == (
        "**What went wrong**: interruptions of training: 1; returns to a checkpoint, "
        "with a lower learning rate: 1; micro-batches skipped because a gradient was "
        "not finite: 3; seconds of lost work: 12; documents that are not UTF-8: 4."
    )
