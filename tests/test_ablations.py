"""The rows of `configs/ablations/` against the paper's tables, written by hand."""

import dataclasses

import jax
import numpy as np
import pytest
from test_architecture import CRAMMED, NORM, by_layers

from cramjax.config import flatten, load, module, to_dict
from cramjax.model.encoder import MaskedLM

architecture, data, preliminary, training = (
    module(f"ablations/{name}")
    for name in ("architecture", "data", "preliminary", "training")
)

# Optimizer, rate, betas, epsilon and clipping of the rows of Tables 12, 5 and 9.
ADAMW = ("adamw", 0.9, 0.98, 1e-12)
ADAM = ("adam_l2", 0.9, 0.999, 1e-8)
TRIANGLE = ("triangle", 0.0, 0)  # curve, warm-up, updates
COSINE = ("cosine", 0.0, 0)
BASE = {
    "optimizer": ADAMW,
    "learning_rate": 1e-3,
    "clip_norm": 0.5,
    "schedule": TRIANGLE,
    "sequences": 4096,
    "ramp": True,
    "predicted": 20,
    "dropout": 0.0,
}
FIXED = {"ramp": False, "predicted": 19, "clip_norm": 0.0}  # 19: 15 % of 128
ORIGINAL = FIXED | {"optimizer": ADAM, "learning_rate": 1e-4, "dropout": 0.1}
MINIMAL = FIXED | {"schedule": COSINE}
LENGTHS = (8, 16, 32, 64, 128)
STARTS = (0.1, 0.2, 0.3, 0.5, 0.75)
LATER = (0.2, 0.35, 0.5, 0.65, 0.85)
TRAINING = {
    # 8 million micro-steps, 32 to an update; a warm-up of 80,000 of them.
    "original": ORIGINAL | {"schedule": ("linear", 0.01, 250_000)},
    "izsak": FIXED
    | {
        "optimizer": ("adamw", 0.9, 0.98, 1e-6),
        "learning_rate": 2e-3,
        "schedule": ("linear", 0.06, 0),
        "dropout": 0.1,
    },
    "minimal": MINIMAL | {"learning_rate": 7e-4},
    "minimal-larger-rate": MINIMAL,
    "minimal-one-cycle": {
        "schedule": ("one_cycle", 0.0, 0),
        "predicted": 19,
        "clip_norm": 0.0,
    },
    "minimal-clipping": {},
    "adafactor": {"optimizer": ("adafactor", 0.9, 0.98, 1e-12)},
    "adam": {"optimizer": ADAM},
    "sgd": {"optimizer": ("sgd", 0.9, 0.98, 1e-12)},
    "radam": {"optimizer": ("radam", 0.9, 0.98, 1e-12)},
    "dropout": {"dropout": 0.1},
    "masking-20": {"predicted": 26, "dropout": 0.1},
    "masking-40": {"predicted": 51, "dropout": 0.1},
    "masking-60": {"predicted": 77, "dropout": 0.1},
    "lengths": {"curriculum": (LENGTHS, STARTS, False)},
    "lengths-unfolded": {"curriculum": (LENGTHS, STARTS, True)},
    "lengths-unfolded-later": {"curriculum": (LENGTHS, LATER, True)},
    "tables-5-9-original": ORIGINAL
    | {"schedule": ("cosine", 0.06, 0), "sequences": 512},
    "tables-5-9-minimal": MINIMAL
    | {"learning_rate": 5e-4, "schedule": ("cosine", 0.06, 0), "sequences": 8192},
}
# Loss, MNLI and tokens/s, as printed.
FIGURES = {
    "original": (7.28, "60.65/60.31", 49264),
    "izsak": (2.06, "79.90/80.30", 46869),
    "minimal": (2.03, "78.78/79.36", 47346),
    "minimal-larger-rate": (1.99, "80.25/80.50", 46524),
    "minimal-one-cycle": (1.84, "82.12/82.55", 46843),
    "minimal-clipping": (1.84, "81.79/82.14", 46303),
    "dropout": (1.97, "80.95/80.98", 45198),
}


def test_the_training_rows_cover_the_table():
    assert list(TRAINING) == list(training.ROWS)
    for row, figures in FIGURES.items():
        assert training.ROWS[row][1:] == figures


@pytest.mark.parametrize("row", TRAINING)
def test_a_training_row_is_the_papers(row):
    config = load(f"configs/ablations/training.py:{row}")
    optimizer, schedule = config.optimizer, config.schedule
    expected = BASE | TRAINING[row]
    curriculum = expected.pop("curriculum", ((), (), True))
    micro_batches_a_day = 46431 * 86400 / (128 * 128)
    ramp_share = 300_000 / micro_batches_a_day if expected.pop("ramp") else 0.0
    assert expected == {
        "optimizer": (optimizer.name, optimizer.b1, optimizer.b2, optimizer.eps),
        "learning_rate": optimizer.learning_rate,
        "clip_norm": optimizer.clip_norm,
        "schedule": (schedule.curve, schedule.warmup, schedule.updates),
        "sequences": config.batch.sequences,
        "predicted": round(128 * config.objective.mask_rate),
        "dropout": config.objective.dropout,
    }
    assert config.batch.ramp_share == pytest.approx(ramp_share)
    assert dataclasses.astuple(config.curriculum) == curriculum
    assert (optimizer.weight_decay, config.micro_batch) == (0.01, 128)
    assert (schedule.base, schedule.falloff, schedule.cooldown) == (0.25, 0.25, 0.0)
    assert config.model == load("configs/ablations/architecture.py:crammed-bert").model


def test_the_row_minimal_clipping_is_the_base_of_the_architectures():
    row = load("configs/ablations/training.py:minimal-clipping")
    assert row == load("configs/ablations/architecture.py:crammed-bert")


@pytest.mark.parametrize("row", data.ROWS)
def test_a_data_row_changes_one_key_of_the_a6000s(row):
    base, config = (
        flatten(to_dict(load(path)))
        for path in ("configs/a6000.py", f"configs/ablations/data.py:{row}")
    )
    changed = {key: value for key, value in config.items() if value != base[key]}
    assert (
        changed
        == {
            "baseline": {},
            "vocab-65536": {"model.vocab_size": 65536},
            "cls": {"data.cls": True},
            "sentencepiece-bpe": {"data.tokenizer_kind": "sentencepiece_bpe"},
            "sorted-by-fragments": {"data.order": "fragments"},
            "sorted-by-unigram": {"data.order": "unigram"},
        }[row]
    )


def parameters(config):
    tokens = np.zeros((1, 8), np.int32)
    params = jax.eval_shape(
        MaskedLM(config.model).init, jax.random.key(0), tokens, tokens
    )
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_preliminary_model_is_table_11s_but_for_three_keys():
    base = flatten(to_dict(load("configs/ablations/preliminary.py")))
    final = flatten(to_dict(load("configs/ablations/architecture.py")))
    ramp_share = final.pop("batch.ramp_share") * 46431 / 50946
    assert base.pop("batch.ramp_share") == pytest.approx(ramp_share)
    assert {key: value for key, value in base.items() if value != final[key]} == {
        "model.layers": 12,
        "model.heads": 4,
        "model.positions": "scaled_sinusoidal+rotary",
    }


@pytest.mark.parametrize(
    ("row", "heads", "positions", "count"),
    [
        ("base", 4, "scaled_sinusoidal+rotary", by_layers(12)),
        ("layers-16", 4, "scaled_sinusoidal+rotary", CRAMMED),
        ("heads-12", 12, "scaled_sinusoidal+rotary", by_layers(12)),
        ("no-rotary", 4, "scaled_sinusoidal", by_layers(12)),
        ("no-final-norm", 4, "scaled_sinusoidal+rotary", by_layers(12) - NORM),
        ("learned-positions", 4, "learned+rotary", by_layers(12) - 1 + 128 * 768),
        ("layers-24", 4, "scaled_sinusoidal+rotary", by_layers(24)),
        ("tiny", 2, "scaled_sinusoidal+rotary", None),
        ("original-bert", 12, "learned", None),
        ("fourier", 4, "scaled_sinusoidal", None),
    ],
)
def test_rows_on_the_preliminary_model(row, heads, positions, count):
    config = load(f"configs/ablations/preliminary.py:{row}")
    assert (config.model.heads, config.model.positions) == (heads, positions)
    assert count is None or parameters(config) == count


@pytest.mark.parametrize("row", preliminary.ROWS)
def test_every_row_of_the_preliminary_model_is_another_model(row):
    config = load(f"configs/ablations/preliminary.py:{row}")
    base = load("configs/ablations/preliminary.py")
    assert (config.model == base.model) == (row == "base")


def test_the_preliminary_model_has_every_row_of_table_11_but_those_that_are_its_own():
    paper = {name for name, row in architecture.ROWS.items() if row.loss}
    own = {"crammed-bert", "layers-12", "heads-4", "rotary"}
    assert paper - own == preliminary.ROWS.keys() - {
        *("base", "layers-16", "heads-12", "no-rotary")
    }
