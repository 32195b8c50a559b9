"""Trials that diverge, and what fine-tuning shows, logs and keeps while it runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_glue import evaluated, finetuned

from cramjax.glue import data, evaluate, scores, tasks
from cramjax.glue import finetune as finetuning
from cramjax.glue import job as jobs
from cramjax.model.encoder import Encoder
from cramjax.training import log as metrics_log
from cramjax.training import loss_scale

NO_SCALE = jnp.float32(1)


def static_of(tiny, dtype, **glue):
    model = dataclasses.replace(tiny.model, dtype=dtype)
    glue = dataclasses.replace(tiny.glue, dropout=0.0, **glue)
    return finetuning._Static(model, glue, 2, 0.1)


def separable(count=32):
    """Returns rows whose fourth token tells their label."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, count).astype(np.int32)
    tokens = generator.integers(20, 200, (count, 12)).astype(np.uint16)
    tokens[:, 3] = 8 + labels
    return data.Encoded(tokens, labels)


def error_of(found, expected):
    norms = [
        np.sqrt(sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(tree)))
        for tree in (jax.tree.map(lambda a, b: a - b, found, expected), expected)
    ]
    return norms[0] / norms[1]


def test_float16_gradients_of_a_small_loss_are_those_of_float32(tiny):
    """Many of them underflow without a loss scale."""
    keys_T = jax.random.split(jax.random.key(0), 1)
    trials_T = finetuning._init(static_of(tiny, "float32"), keys_T, None)
    params = jax.tree.map(lambda leaf: leaf[0], trials_T.params)
    params["head"]["bias"] = jnp.float32([0, 9])  # sure, and right
    tokens_BxL = jnp.asarray(separable().tokens_NxL)
    labels_B = jnp.ones(len(tokens_BxL), jnp.int32)

    def gradients(dtype, scale):
        """Returns the loss and the gradients of what computes in this type."""
        of = jax.jit(finetuning._gradients, static_argnums=0)
        loss, grads = of(
            *(static_of(tiny, dtype), params, scale, jax.random.key(0)),
            *(tokens_BxL, labels_B),
        )
        return loss, {name: grad for name, grad in grads.items() if name != "head"}

    loss, expected = gradients("float32", NO_SCALE)
    assert 1e-4 < float(loss) < 1e-3
    _, unscaled = gradients("float16", NO_SCALE)
    _, scaled = gradients("float16", loss_scale.initial("float16"))
    assert error_of(unscaled, expected) > 0.1
    assert error_of(scaled, expected) < 0.02


@pytest.mark.parametrize(
    ("dtype", "fault"),
    [("float32", "nan"), pytest.param("float16", "overflow", marks=pytest.mark.slow)],
)
def test_an_update_that_is_not_finite_is_left_out_of_its_trial_alone(
    tiny, dtype, fault
):
    static, rows = static_of(tiny, dtype, trials=2), separable()
    keys_T = jax.random.split(jax.random.key(0), 2)
    rows_SxTxB = np.zeros((2, 2, 8), np.int32) + np.arange(8, dtype=np.int32)

    def start(faulty):
        trials_T = finetuning._init(static, keys_T, None)
        if faulty and fault == "nan":
            bias_TxC = trials_T.params["head"]["bias"]
            trials_T.params["head"]["bias"] = bias_TxC.at[0].set(np.nan)
        if faulty and fault == "overflow":
            trials_T = trials_T.replace(scale=trials_T.scale.at[0].set(2.0**120))
        return trials_T

    def after_two_steps(faulty):
        return finetuning._train_chunk(
            *(static, 12, start(faulty), keys_T),
            *(jnp.asarray(rows.tokens_NxL), jnp.asarray(rows.labels_N), rows_SxTxB),
            *(np.int32(2), np.int32(3), np.float32(8), np.float32(1e-3)),
        )

    before, found, clean = start(True), after_two_steps(True), after_two_steps(False)
    assert found.opt_state.total_notfinite.tolist() == [2, 0]
    for state in (lambda t: t.params, lambda t: t.opt_state.inner_state):
        for was, new, other in zip(
            *(jax.tree.leaves(state(t)) for t in (before, found, clean)), strict=True
        ):
            np.testing.assert_array_equal(new[0], was[0])
            np.testing.assert_array_equal(new[1], other[1])
    assert error_of(clean.params, start(False).params) > 0
    if fault == "overflow":
        assert found.scale.tolist() == [2.0**118, loss_scale.START]


def test_a_rate_that_is_far_too_high_diverges(tiny):
    glue = dataclasses.replace(tiny.glue, trials=2, epochs=2, trials_at_once=2)
    rows = separable()

    for rate, count in ((1e30, 2), (1e-3, 0)):
        found = finetuning.finetune(
            *(tiny.model, glue, rows, [rows], 2),
            pretrained=None,
            learning_rate=rate,
            seed=0,
        )
        assert scores.diverged(found.outputs) == count


def test_a_regression_has_the_scale_of_its_labels(tiny):
    """Here from the mean of all hidden states, as by hand."""
    changes = {"trials": 2, "epochs": 12, "batch_size": 8, "pooling": "mean"}
    glue = dataclasses.replace(tiny.glue, **changes)
    rows = separable()
    rows = dataclasses.replace(
        rows, labels_N=np.float32(150_000 + 40_000 * rows.labels_N)
    )
    kept = []
    found = finetuning.finetune(
        *(tiny.model, glue, rows, [rows], 1),
        pretrained=None,
        learning_rate=1e-2,
        seed=0,
        standardize=True,
        on_trained=kept.append,
    )
    outputs_TxN = found.outputs[0][..., 0]
    errors_TxN = np.abs(outputs_TxN - rows.labels_N)
    assert np.median(errors_TxN) < 10_000
    bias_Tx1 = kept[0]["head"]["bias"]
    assert (np.abs(bias_Tx1 - 170_000) < 40_000).all()
    params = jax.tree.map(lambda leaf: np.asarray(leaf[0]), kept[0])
    hidden_NxLxD = Encoder(tiny.model).apply({"params": params}, rows.tokens_NxL)
    pooler, head = params["pooler"], params["head"]
    mean_NxD = np.asarray(hidden_NxLxD).mean(axis=1)
    pooled = np.tanh(mean_NxD @ pooler["kernel"] + pooler["bias"])
    by_hand_N = (pooled @ head["kernel"] + head["bias"])[:, 0]
    np.testing.assert_allclose(outputs_TxN[0], by_hand_N, rtol=1e-5)


@pytest.fixture
def own_config(tiny, tmp_path):
    """A config with one small task, of 32 training rows and 8 dev rows."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name, count in (("train", 32), ("dev", 8)):
        lines = [f"{'yes' if i % 2 else 'no'} {i}\t{i % 2}" for i in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]))
    glue = dataclasses.replace(
        tiny.glue,
        tasks=("own",),
        own_dir=str(folder),
        own_texts=("text",),
        own_label="label",
        own_metric="accuracy",
        starts=("random",),
        trials=3,
        trials_at_once=1,
        epochs=2,
        batch_size=8,
    )
    return dataclasses.replace(tiny, glue=glue)


def with_glue(config, **glue):
    return dataclasses.replace(config, glue=dataclasses.replace(config.glue, **glue))


def scored(config, corpus, workdir, said=()):
    """Returns the entries of glue.json, and what was said of trials."""
    workdir.mkdir(exist_ok=True)
    results = evaluated(config, corpus.tokenizer, workdir)
    return results, [line for line in said if "bag of words" not in line]


@pytest.fixture
def stsb_config(tiny, tmp_path):
    """STS-B, with a test set, at two learning rates."""
    folder = tmp_path / "glue" / "STS-B"
    folder.mkdir(parents=True)
    for name in ("train", "dev", "test"):
        lines = [f"{i}\tA {i}.\tB {i}.\t{i % 5}.5\n" for i in range(16)]
        head = "index\tsentence1\tsentence2\tscore\n"
        (folder / f"{name}.tsv").write_text(head + "".join(lines))
    return with_glue(
        tiny,
        tasks=("stsb",),
        data_dir=str(tmp_path / "glue"),
        starts=("random",),
        learning_rates=(1e-3, 1e-2),
        trials=3,
    )


def diverging(monkeypatch, bad_rates):
    """Trials that are right; at some rates the first one has diverged."""

    def finetune(model, glue, train, sets, outputs, *, learning_rate, **_):
        # Perfect at the higher rate, not quite at the other one.
        found = []
        for rows in sets:
            outputs_Nx1 = rows.labels_N[:, None] + np.float32(0)
            outputs_Nx1[0] += 1e-3 / learning_rate
            outputs_TxNx1 = np.stack([outputs_Nx1] * 3)
            if learning_rate in bad_rates:
                outputs_TxNx1[0] = np.nan
            found.append(outputs_TxNx1)
        return finetuned(found)

    monkeypatch.setattr(evaluate, "finetune", finetune)


def test_a_rate_by_which_a_trial_diverged_is_not_chosen(
    stsb_config, corpus, tmp_path, monkeypatch, said
):
    diverging(monkeypatch, bad_rates=[1e-2])
    results, lines = scored(stsb_config, corpus, tmp_path / "w", said)
    found = results["stsb"]["starts"]["random"]
    assert found["diverged"] == {"0.001": 0, "0.01": 1}
    assert found["scores"]["0.01"][0] == 0 < found["scores"]["0.01"][1]
    assert np.median(found["scores"]["0.01"]) > found["median"]
    assert found["best_rate"] == 1e-3
    assert (
        lines[0].endswith("at once)")
        and "1 diverged: their outputs are not" in lines[1]
    )
    page = (tmp_path / "w" / "glue.md").read_text()
    assert (
        "STS-B, random: the outputs of 1 of 3 trials at 0.01 are not finite; these "
        "learning rates are not chosen." in page
    )
    submission = (tmp_path / "w" / "submission" / "random" / "STS-B.tsv").read_text()
    assert "nan" not in submission


def test_if_trials_diverge_at_every_rate_there_is_no_submission(
    stsb_config, corpus, tmp_path, monkeypatch
):
    diverging(monkeypatch, bad_rates=[1e-3, 1e-2])
    stale = tmp_path / "w" / "submission" / "random" / "STS-B.tsv"  # of deleted scores
    stale.parent.mkdir(parents=True)
    stale.write_text("index\tprediction\n")
    results, _ = scored(stsb_config, corpus, tmp_path / "w")
    assert results["stsb"]["starts"]["random"]["diverged"] == {"0.001": 1, "0.01": 1}
    page = (tmp_path / "w" / "glue.md").read_text()
    assert "trials diverged at every learning rate" in page
    for row in ("| **random** | - | - | - |", "| STS-B | pearson | random |"):
        [line] = [line for line in page.splitlines() if line.startswith(row)]
        assert line.count(" (diverged) |") == 1
    assert not stale.exists()


def test_every_epoch_has_its_scores(own_config, corpus, tmp_path):
    results, _ = scored(with_glue(own_config, trials_at_once=2), corpus, tmp_path / "w")
    lines = metrics_log.read(tmp_path / "w" / "finetune.jsonl")
    assert [(line["trials"], line["epoch"]) for line in lines] == [
        *(([0, 1], 1), ([0, 1], 2), ([2], 1), ([2], 2))
    ]
    assert all(len(line["loss"]) == len(line["trials"]) for line in lines)
    last = [s for line in lines[1::2] for s in line["scores"]["own"]["accuracy"]]
    assert last == results["own"]["starts"]["random"]["scores"]["0.001"]
    assert lines[0]["dev_rows"] == {"own": 8}
    assert (lines[0]["task"], lines[0]["start"], lines[0]["rate"]) == (
        *("own", "random"),
        0.001,
    )


def test_an_interruption_keeps_finished_trials(
    own_config, corpus, tmp_path, monkeypatch
):
    """To the bit; the third trial is interrupted, and then the only one trained."""
    expected, _ = scored(own_config, corpus, tmp_path / "whole")
    trained, train = [], finetuning._train

    def interrupted(static, rows, pretrained, trials, *args):
        trained.append(trials.start)
        if trained == [0, 1, 2]:
            raise KeyboardInterrupt
        return train(static, rows, pretrained, trials, *args)

    monkeypatch.setattr(finetuning, "_train", interrupted)
    workdir = tmp_path / "w"
    with pytest.raises(KeyboardInterrupt):
        scored(own_config, corpus, workdir)
    kept = {path.name for path in (workdir / "predictions").iterdir()}
    assert kept == {"own-random-0.001.trial0.npz", "own-random-0.001.trial1.npz"}
    found, _ = scored(own_config, corpus, workdir)
    assert trained == [0, 1, 2, 2]
    assert found == expected
    saved = [
        scores.load_predictions(folder, "own", "random", 1e-3)["predictions_TxN"]
        for folder in (workdir, tmp_path / "whole")
    ]
    np.testing.assert_array_equal(*saved)
    files = {path.name for path in (workdir / "predictions").iterdir()}
    assert files == {"own-random-0.001.npz"}


def job_of(folder, config, rows, weights=None):
    return jobs.Job(folder, folder / jobs.LOG, config, rows, "random", 1e-3, weights)


def test_trials_of_other_weights_rows_settings_or_versions_are_not_kept(
    own_config, corpus, tmp_path, monkeypatch
):
    (task,) = tasks.get(own_config.glue)
    rows = data.load(task, own_config.glue)
    rows = data.encode_all(rows, corpus.tokenizer, own_config.glue)
    fewer = dataclasses.replace(rows, train=rows.train[1:])
    other = data.Encoded(rows.train.tokens_NxL, 1 - rows.train.labels_N)
    relabelled = dataclasses.replace(rows, train=other)
    weights = {"embedding": np.ones(3, np.float32)}
    trained = finetuning.Finetuned([np.ones((1, 8, 2))], np.array([4]), 1)

    def kept(config=own_config, rows=rows, weights=weights):
        return job_of(tmp_path, config, rows, weights)

    kept().save(0, trained)
    found = kept().load(0)
    assert (found.at_once, found.skipped_T.tolist()) == (1, [4])
    np.testing.assert_array_equal(found.outputs[0], trained.outputs[0])
    assert kept().load(1) is None
    assert kept(weights={"embedding": np.zeros(3, np.float32)}).load(0) is None
    assert kept(rows=fewer).load(0) is None
    assert kept(rows=relabelled).load(0) is None
    assert kept(dataclasses.replace(own_config, seed=9)).load(0) is None
    assert kept(with_glue(own_config, epochs=3)).load(0) is None
    for versions in ("code_version", "library_versions"):
        with monkeypatch.context() as patch:
            patch.setattr(jobs, versions, lambda: "another one")
            assert kept().load(0) is None
    assert kept().load(0) is not None


def test_an_epochs_scores_are_of_few_rows_where_these_are_many(own_config, tmp_path):
    part = separable(3000)
    (task,) = tasks.get(own_config.glue)
    task = dataclasses.replace(
        task,
        dev=tuple(dataclasses.replace(task.dev[0], name=n) for n in ("few", "many")),
    )
    dev = {"few": part[:130], "many": part}
    rows = data.TaskRows(task, part[:2000], dev, {}, ("0", "1"), 2000, ())
    predicted = []

    def predict(rows):
        predicted.append(rows.tokens_NxL)
        return np.ones((1, len(rows), 2))

    with job_of(tmp_path, own_config, rows) as job:
        job.write_epoch(range(1), 1, np.zeros(1), predict)
    [line] = metrics_log.read(tmp_path / "finetune.jsonl")
    assert line["dev_rows"] == {"few": 130, "many": 375}  # at most 2000 / 5
    np.testing.assert_array_equal(predicted[1], part.tokens_NxL[::8])


def test_the_whole_time_follows_from_one_step(own_config, corpus, monkeypatch):
    """3 trials and 2 rates of (2 x 32 rows + 8 / 3) of 32 tokens, a row in 0.1 s."""
    monkeypatch.setattr(evaluate, "fastest", lambda *_: (1, 0.8))  # of 8 rows
    config = with_glue(own_config, learning_rates=(1e-3, 2e-3))
    found = evaluate.estimate_s(config, tasks.get(config.glue), corpus.tokenizer)
    assert found == pytest.approx(3 * 2 * (2 * 32 + 8 / 3) * 0.1)
