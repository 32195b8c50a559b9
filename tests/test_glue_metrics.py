"""Metrics against the libraries and by hand; averages against the paper's."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from cramjax import config
from cramjax.glue import scores, tables
from cramjax.glue.scores import AVERAGES
from cramjax.page import to_markdown


def test_the_schema_knows_all_metrics():
    assert tuple(scores.metric_functions()) == config.glue.METRICS


def test_metrics_by_hand():
    labels = np.array([1, 1, 1, 0])
    predictions = np.array([1, 1, 0, 0])
    assert scores.score("accuracy", labels, predictions) == 75
    for name in ("f1", "f1a"):
        assert scores.score(name, labels, predictions) == pytest.approx(80)
    # Class 1: 80; class 0: precision 1/2, recall 1, so 2/3.
    assert scores.score("macro_f1", labels, predictions) == pytest.approx(220 / 3)
    assert scores.score("matthews", labels, predictions) == pytest.approx(57.735, 1e-4)
    numbers = np.array([1.0, 2.0, 3.0])
    # Deviations (-1, 0, 1) and (-1, -1, 2): 3 / sqrt(2 * 6).
    others = np.array([0.0, 0.0, 3.0])
    assert scores.score("pearson", numbers, others) == pytest.approx(86.6025, 1e-5)
    assert scores.score("spearman", numbers, -numbers) == pytest.approx(-100)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_agree_with_the_libraries(seed):
    generator = np.random.default_rng(seed)
    labels, predictions = generator.integers(0, 2, (2, 50))
    three = generator.integers(0, 3, (2, 50))
    numbers = generator.normal(size=(2, 50)).astype(np.float32)
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(labels, predictions),
        "f1": sklearn.metrics.f1_score(labels, predictions),
        "f1a": sklearn.metrics.f1_score(labels, predictions),
        "matthews": sklearn.metrics.matthews_corrcoef(labels, predictions),
    }
    for name, value in expected.items():
        assert scores.score(name, labels, predictions) == pytest.approx(100 * value)
    macro = sklearn.metrics.f1_score(*three, average="macro")
    assert scores.score("macro_f1", *three) == pytest.approx(100 * macro)
    pearson = scipy.stats.pearsonr(*numbers.astype(np.float64)).statistic
    spearman = scipy.stats.spearmanr(*numbers).statistic
    assert scores.score("pearson", *numbers) == pytest.approx(100 * pearson)
    assert scores.score("spearman", *numbers) == pytest.approx(100 * spearman)


@pytest.mark.parametrize("name", config.glue.METRICS)
@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
@pytest.mark.parametrize("predictions", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_constant_predictions_have_a_score(name, labels, predictions):
    """Warnings are errors, so this is also without a warning."""
    labels, predictions = np.array(labels), np.array(predictions)
    value = scores.score(name, labels, predictions)
    equal = (labels == predictions).mean()
    if name in ("matthews", "pearson", "spearman"):
        assert value == 0
    elif name == "accuracy":
        assert value == 100 * equal
    elif name in ("f1", "f1a"):
        # Of class 1: precision is the share of it if all are called 1.
        share = labels.mean() * predictions[0]
        assert value == pytest.approx(100 * 2 * share / (1 + share))
    else:
        found = {1.0: 100, 0.0: 0, 0.5: 100 / 3}  # one class of two has F1 2/3
        assert value == pytest.approx(found[equal])


def test_a_diverged_or_nearly_constant_regression_has_a_score():
    labels = np.array([0.0, 2.0, 5.0], np.float32)
    for bad in (np.nan, np.inf):
        assert scores.score("pearson", labels, np.array([1.0, bad, 2.0])) == 0
    nearly = 3e9 + np.array([0.0, 0.0, 1e-6])
    assert abs(scores.score("pearson", labels, nearly)) <= 100


@pytest.mark.parametrize("row", tables.PAPER_GLUE)
def test_the_mean_of_nine_numbers_is_the_papers(row):
    *numbers, mean = tables.PAPER_GLUE[row]
    value, count = scores.mean(
        AVERAGES["nine"], dict(zip(scores.NINE, numbers, strict=True))
    )
    assert count == 9
    assert value == pytest.approx(mean, abs=0.0501)  # the numbers are rounded, too


def test_two_rows_to_the_last_digit():
    for row, mean in (
        ("crammed, A6000", "80.4"),
        ("BERT-base, fully trained", "81.0"),
    ):
        numbers = dict(zip(scores.NINE, tables.PAPER_GLUE[row][:9], strict=True))
        assert f"{scores.mean(AVERAGES['nine'], numbers)[0]:.1f}" == mean
        # MNLI counts once here: (8 * mean - the mean of MNLI) / 8 would be wrong.
        eight = (sum(numbers.values()) - sum(tables.PAPER_GLUE[row][:2]) / 2) / 8
        assert scores.mean(AVERAGES["eight"], numbers)[0] == pytest.approx(eight)


def entry(task, metric, median, others=None, **rows):
    def part(value):
        spread = dict.fromkeys(("median", "mean", "min", "max"), value) | {"std": None}
        return {"scores": {"4e-05": [value]}, **spread}

    sizes = {"train_rows": 10, "full_train_rows": 10, "all_train_rows": 10}
    sizes |= {"dev_rows": 5, "full_dev_rows": 5} | rows
    others = {name: part(value) for name, value in (others or {}).items()}
    scored = {**part(median), "best_rate": 4e-5, "others": others}
    return {
        "task": task,
        "title": scores.TITLES[task],
        "metric": metric,
        "majority": 50.0,
        "notes": ["Something is missing"],
        "starts": {"pretrained": scored},
        **sizes,
    }


def nine(**changes):
    """Entries of glue.json with the numbers of the A6000."""
    numbers = tables.PAPER_GLUE["crammed, A6000"][:9]
    results = {
        name: entry(name, metric, value)
        for (name, metric), value in zip(scores.NINE, numbers, strict=True)
    }
    results["mrpc"] = entry("mrpc", "f1", 89.0, {"accuracy": 85.0})
    results["qqp"] = entry("qqp", "f1", 87.7, {"accuracy": 91.0})
    return results | changes


def test_averages_are_labelled():
    found = scores.averages(nine(), "pretrained")
    assert list(found) == ["nine", "eight", "eight_accuracy"]
    assert found["nine"]["title"] == "GLUE, the paper's mean of nine numbers"
    assert found["nine"]["value"] == pytest.approx(723.6 / 9)
    eight = (84.2 + 92.3 + 87.0 + 57.4 + 90.0 + 87.7 + 89.0 + 51.8) / 8
    assert found["eight"]["value"] == pytest.approx(eight)
    accuracy = eight + (91.0 - 87.7 + 85.0 - 89.0) / 8
    assert found["eight_accuracy"]["value"] == pytest.approx(accuracy)
    assert scores.averages(nine(), "random") == {}


def test_an_average_over_fewer_numbers_says_so_and_is_not_called_glue():
    results = nine()
    del results["mnli_mm"], results["qqp"]
    found = scores.averages(results, "pretrained")
    title = "mean of 7 of the paper's nine numbers, without MNLI-mm, QQP"
    assert found["nine"]["title"] == title
    rest = 84.0 + 92.3 + 87.0 + 57.4 + 90.0 + 89.0 + 51.8
    assert found["nine"]["value"] == pytest.approx(rest / 7)
    # MNLI is there by its matched half.
    assert found["eight"]["title"] == "mean of 7 of eight tasks, without MNLI-mm, QQP"
    assert found["eight"]["value"] == pytest.approx(rest / 7)
    assert not any("GLUE" in average["title"] for average in found.values())
    assert scores.averages({"cola": results["cola"]}, "pretrained") == {}


def test_an_average_over_sampled_rows_says_so():
    results = nine(
        qnli=entry("qnli", "accuracy", 90.0, train_rows=8),
        rte=entry("rte", "accuracy", 57.4, dev_rows=4),
        sst2=entry("sst2", "accuracy", 92.3, full_train_rows=0, train_rows=8),
    )
    title = scores.averages(results, "pretrained")["nine"]["title"]
    assert title == "GLUE, the paper's mean of nine numbers; sampled: RTE, QNLI"


def test_a_number_of_sampled_rows_says_so_beside_the_papers():
    loaded = config.load("configs/default.py")
    qnli = entry("qnli", "accuracy", 90.0, train_rows=8)
    rte = entry("rte", "accuracy", 57.4, dev_rows=4)
    page = tables.page(nine(qnli=qnli, rte=rte), loaded, {})
    numbers = (
        "84.0 | 84.4 | 92.3 | 87.0 | 57.4 (sampled) | 90.0 (sampled) | 87.7 | 89.0"
    )
    assert f"| **pretrained** | {numbers} | 51.8 | 80.4 (sampled) |" in page
    assert "Sampled: trained or scored on a part of the benchmark's rows" in page
    assert "8 of 10 | 5 |" in page and "| 10 | 4 of 5 |" in page
    assert "ampled" not in tables.page(nine(), loaded, {})


def test_superglue_is_the_mean_of_ten_numbers():
    scored = {
        "copa": "accuracy",
        "multirc": "f1a",
        "superglue_rte": "accuracy",
        "wic": "accuracy",
        "wsc": "accuracy",
        "boolq": "accuracy",
        "axb": "matthews",
        "axg": "accuracy",
    }
    results = {name: entry(name, metric, 50.0) for name, metric in scored.items()}
    results["cb"] = entry("cb", "macro_f1", 70.0, {"accuracy": 80.0})
    found = scores.averages(results, "pretrained")
    assert list(found) == ["superglue"]
    assert found["superglue"]["value"] == pytest.approx((8 * 50 + 70 + 80) / 10)
    assert "ten numbers" in found["superglue"]["title"]
    del results["axb"]
    page = tables.page(results, config.load("configs/default.py"), {})
    assert "paper: BERT-base, fully trained 56.6; crammed, A6000 54.2" in page
    assert "Beside the paper" not in page  # that is GLUE
    title = scores.averages(results, "pretrained")["superglue"]["title"]
    assert title == "mean of 9 of the paper's ten numbers of harder tasks, without AX-b"


def test_the_page_is_beside_the_papers_rows():
    loaded = config.load("configs/default.py")
    page = tables.page(nine(), loaded, {})
    ours = "| **pretrained** | 84.0 | 84.4 | 92.3 | 87.0 | 57.4 | 90.0 | 87.7 | 89.0 |"
    assert f"{ours} 51.8 | 80.4 |" in page
    assert ours.replace("**pretrained**", "crammed, A6000") in page
    assert "medians of 5 trials of 5 epochs. Learning rate 4e-05." in page
    assert "| MRPC | accuracy | pretrained | 4e-05 | **85.0** |" in page
    assert page.count("Something is missing.") == 1
    fewer = nine()
    del fewer["mnli_mm"]
    page = tables.page(fewer, loaded, {})
    assert "| **pretrained** | 84.0 | - | 92.3 " in page
    assert "| 90.0 | 87.7 | 89.0 | 51.8 | - |" in page
    both = dataclasses.replace(loaded.glue, starts=("pretrained", "random"))
    loaded = dataclasses.replace(loaded, glue=both)
    assert "| **random** | - | - " in tables.page(nine(), loaded, {})


def test_a_start_that_lacks_a_task_has_a_row_of_its_own():
    loaded = config.load("configs/default.py", ["glue.starts=('pretrained','random')"])
    results = nine()
    for name in ("sst2", "cola"):
        starts = results[name]["starts"]
        starts["random"] = starts["pretrained"]
    lines = to_markdown(tables.averages_table(results, loaded.glue, "")).splitlines()
    assert "| GLUE, the paper's mean of nine numbers | 80.4 | - | - |" in lines
    [fewer] = [line for line in lines if line.startswith("| mean of 2 of the paper's")]
    assert fewer.endswith(" | - | 72.0 | - |")  # of 92.3 and 51.8


def under_every_table(page):
    """Returns the paragraphs of a page that say the track, one for each table."""
    paragraphs = page.split("\n\n")
    tables_of_scores = [p for p in paragraphs if p.startswith("|")]
    found = [p for p in paragraphs if p.startswith("Track: ")]
    assert len(found) == len(tables_of_scores) > 0
    return found


def compared(*overrides):
    return config.load("configs/default.py", overrides)


def test_track_and_protocol_are_said_under_every_table():
    """Also under a single task beside the paper's rows, which has no average."""
    differences = {"pretrained - random": {}}
    differences["pretrained - random"]["rte"] = {"difference": 1, "low": 0, "high": 2}
    for results in (nine(), {"rte": nine()["rte"]}):
        found = under_every_table(tables.page(results, compared(), differences))
        assert set(found) == {
            "Track: **rules**. The protocol is the paper's (arXiv 2212.14034)."
        }
        changed = compared("glue.epochs=4", "glue.warmup_steps=267")
        found = under_every_table(tables.page(results, changed, differences))
        assert set(found) == {
            "Track: **rules**. Not comparable with the paper (arXiv 2212.14034), whose "
            "settings are in parentheses: epochs 4 (5), warmup_steps 267 (0)."
        }


@pytest.mark.parametrize(
    ("override", "imported", "reason"),
    [
        ("seed=0", True, "an imported model"),
        (
            "data.sources=hf://datasets/HuggingFaceFW/fineweb-edu/*.parquet",
            False,
            "text that a model has filtered",
        ),
        ("budget.hours=25", False, "more than 24 hours of pretraining"),
        ("init_from=w", False, "pretraining began with another model's weights"),
        ("glue.epochs=6", False, "more than 5 epochs of fine-tuning"),
        (
            "glue.learning_rates=(4e-5,1e-4)",
            False,
            "a learning rate of its own for each task",
        ),
    ],
)
def test_a_broken_rule_makes_the_track_open(override, imported, reason):
    page = tables.page(nine(), compared(override), {}, imported=imported)
    for line in under_every_table(page):
        assert line.startswith(f"Track: **open** ({reason}). ")


def test_text_filtered_by_rules_alone_is_of_the_rules_track():
    loaded = compared("data.sources=hf://datasets/HuggingFaceFW/fineweb/*.parquet")
    assert tables.broken_rules(loaded, imported=False) == []


def test_a_learning_rate_for_each_task_is_not_the_papers_protocol():
    glue = compared("glue.epochs=20", "glue.learning_rates=(4e-5,1e-4)").glue
    assert tables.departures(glue) == [
        "epochs 20 (5)",
        "learning_rates 4e-05 and 0.0001 (4e-05)",
        "the learning rate is chosen for each task (one for all)",
    ]


def test_a_bag_of_words_is_beside_every_score_and_named_where_it_is_as_good():
    bags = {"rte": {"accuracy": 57.4}, "cola": {"matthews": 51.7}}
    bags["mrpc"] = {"f1": 90.0, "accuracy": 84.0}
    results = nine()
    for name, found in bags.items():
        results[name]["bag_of_words"] = found
    page = tables.page(results, compared(), {})
    assert "It does as well as the pretrained model, or better, on RTE; MRPC." in page
    row = "| **bag of words** | - | - | - | - | 57.4 | - | - | 90.0 | 51.7 | - |"
    assert row in page
    header = "standard deviation | trials | bag of words | majority class | training"
    assert header in page
    assert (
        "| MRPC | f1 | pretrained | 4e-05 | **89.0** | 89.0 | - | 89.0 | 90.0 |" in page
    )
    # Of another metric than the first one, too; an older glue.json has a dash.
    assert (
        "| MRPC | accuracy | pretrained | 4e-05 | **85.0** | 85.0 | - | 85.0 | 84.0 |"
        in page
    )
    assert (
        "| SST-2 | accuracy | pretrained | 4e-05 | **92.3** | 92.3 | - | 92.3 | - |"
        in page
    )
    mean = (57.4 + 51.7 + 90.0) / 3
    means = to_markdown(tables.averages_table(results, compared().glue, ""))
    assert "mean of 3 of the paper's nine numbers, without MNLI-m" in means
    assert f" | - | {mean:.1f} |" in means
    for found in bags.values():
        found.update(dict.fromkeys(found, 10.0))
    page = tables.page(results, compared(), {})
    assert "tf-idf" in page and "does as well" not in page
    assert "tf-idf" not in tables.page(nine(), compared(), {})


def test_a_number_of_diverged_trials_is_marked_in_every_table():
    """At the best rate alone: others are not chosen."""
    results = nine()
    for entry_ in results.values():
        entry_["starts"]["pretrained"]["scores"]["0.1"] = [0.0]
        entry_["starts"]["random"] = dict(entry_["starts"]["pretrained"])
    results["rte"]["starts"]["random"]["diverged"] = {"4e-05": 1, "0.1": 1}
    results["rte"]["starts"]["pretrained"]["diverged"] = {"4e-05": 0, "0.1": 1}
    between = {"rte": {"difference": 1.0, "low": 0.0, "high": 2.0}}
    between["cola"] = between["rte"]
    loaded = compared("glue.starts=('pretrained','random')")
    page = tables.page(results, loaded, {"pretrained - random": between})
    marked = [line for line in page.splitlines() if "(diverged) |" in line]
    assert [line.split(" | ")[0] for line in marked] == [
        "| **random**",
        "| GLUE, the paper's mean of nine numbers",
        "| GLUE, mean of eight tasks, MNLI averaged",
        "| GLUE, mean of eight tasks, MNLI averaged, MRPC and QQP by accuracy",
        *["| RTE", "| RTE"],
    ]
    beside, means, *_, between, trials = marked
    assert "| 57.4 (diverged) |" in beside and beside.endswith(" 80.4 (diverged) |")
    assert beside.count("diverged") == 2
    assert " | 80.4 | 80.4 (diverged) | - |" in means
    assert "(+0.0 to +2.0) (diverged) |" in between
    assert trials.startswith("| RTE | accuracy | random | 4e-05 | **57.4** (diverged)")


def test_a_row_in_a_thousand_more_or_less_is_no_sample():
    qqp = entry("qqp", "f1", 87.7, train_rows=363_849, full_train_rows=363_846)
    assert not scores.is_sampled(qqp)
    assert scores.is_sampled(qqp | {"train_rows": 363_000})


def test_the_papers_metrics():
    """Section 5: F1 for QQP and MRPC, Pearson for STS-B, Matthews for CoLA."""
    special = {"qqp": "f1", "mrpc": "f1", "stsb": "pearson", "cola": "matthews"}
    for name, metric in scores.NINE:
        assert metric == special.get(name, "accuracy"), name
