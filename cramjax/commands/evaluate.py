"""Fine-tunes on GLUE, SuperGLUE or your own task, and scores it, without pretraining.

cramjax evaluate --config=... --checkpoint=DIR [--tasks=rte,mrpc]
    [--data_dir=FOLDER] [--workdir=DIR/evaluation] [--config.glue.KEY=VALUE]

DIR is the workdir of a finished pretraining: its config describes the model, and
--config the fine-tuning (its section `glue`). Or DIR is a folder with a checkpoint of
Hugging Face's BERT or ModernBERT (config.json, model.safetensors, tokenizer.json); its
tokenizer and template are then used. Without --checkpoint, fine-tuning starts from
random weights (in runs/random), with the tokenizer of the config's corpus. The same
command continues, even with more tasks. Results: glue.json, glue.md, predictions/.
"""

from collections.abc import Sequence


def command(argv: Sequence[str]) -> None:
    """Scores what the flags ask for, and prints the table."""
    from cramjax import score  # imports JAX: --help need not wait for it

    print(score.score(argv))
