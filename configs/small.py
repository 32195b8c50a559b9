"""The paper's recipe in a size for a laptop's CPU, on embedded data.

    python -m cramjax.main --config=small

The baseline of the studies, and what the quickstart changes. Besides size, it differs
from the paper's recipe in float32, several passes over shuffled, unfiltered text, a
higher learning rate, batches of 64 sequences without a ramp, and three learning rates
for fine-tuning, of which each initialization gets its best one.
"""

from ml_collections import config_dict

import cramjax.config


def get_config() -> config_dict.ConfigDict:
    """Returns a small model, a small budget and the embedded tasks."""
    config = cramjax.config.defaults()
    config.platform = "any"
    config.micro_batch = 64

    config.model.width = 128
    config.model.ffn_width = 512
    config.model.layers = 2
    config.model.heads = 4
    config.model.vocab_size = 4096
    config.model.max_length = 32  # short contexts are learned sooner
    config.model.dtype = "float32"

    config.data.sources = ("embedded:books",)
    config.data.max_tokens_per_char = 0.0  # the text is clean, the vocabulary small
    config.data.held_out_share = 0.07  # 400 sentences that word order can be scored on
    config.data.licence = "public domain (cramjax/demo/README.md)"
    config.data.order = "random"

    config.optimizer.learning_rate = 4e-3
    config.batch.sequences = 64

    config.budget.hours = 0.0
    config.budget.tokens = 6_000_000

    config.checkpoint.every_minutes = 1.0
    config.log.every_steps = 50
    # Small models stay near the unigram entropy for a long time.
    config.guard.max_loss = 0.0
    config.validation.every_minutes = 0.5

    config.glue.tasks = ("intents10", "acceptability")
    config.glue.starts = ("pretrained", "random")
    # As measured on two cores; fixed, so that every run gives the same digits
    # (with the same versions of JAX and its dependencies).
    config.glue.trials_at_once = 3
    config.glue.trials = 3
    # For each initialization, the best of wider grids is among these.
    config.glue.learning_rates = (4e-3, 8e-3, 1.6e-2)
    config.glue.max_length = 48  # sinusoidal positions go on beyond a block's 32
    config.glue.head_width = 128
    config.glue.max_train_rows = 400
    return config
