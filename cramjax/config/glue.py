"""Fine-tuning."""

import dataclasses

from cramjax.config.key import Rule, Section, above, at_least, key, one_of, within

# A test compares these with `glue.scores.metric_functions`, which imports scikit-learn.
METRICS = ("accuracy", "f1", "f1a", "macro_f1", "matthews", "pearson", "spearman")
INITIALIZATIONS = ("pretrained", "random", "ema", "lawa")


@dataclasses.dataclass(frozen=True)
class GlueConfig(Section):
    """Fine-tuning: the tasks (paper 5) and the protocol."""

    # The paper's eight; () = stop after pretraining. There are also wnli; SuperGLUE's
    # cb, copa, multirc, wic, wsc, boolq and superglue_rte (with AX-b and AX-g); in the
    # package intents, intents10, acceptability and swapped; and own, the task of the
    # own_ keys.
    tasks: tuple[str, ...] = key(
        ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"), operational=True
    )
    # Folder with CoLA/train.tsv, CoLA/dev.tsv, SST-2/ ...; if it does not exist,
    # TensorFlow Datasets downloads and prepares GLUE, once for all runs.
    data_dir: str = key("glue_data", operational=True)
    # With CB/train.jsonl, CB/val.jsonl, COPA/ ...
    superglue_dir: str = key(
        "superglue_data", absent="superglue_data", operational=True
    )
    # GLUE from TFDS, prepared in this folder, whether data_dir exists or not. "" =
    # data_dir, or TFDS's own folder, ~/tensorflow_datasets, if it does not exist.
    tfds_dir: str = key("", absent="", operational=True)
    # Your own task: a folder with train and dev, each .tsv (with a header) or .jsonl.
    own_dir: str = key("", absent="")
    own_texts: tuple[str, ...] = key(
        ("text",), Rule(lambda x: len(x) > 0, "one or more columns"), absent=("text",)
    )  # its columns with text
    own_label: str = key("label", absent="label")  # the column with its label
    # "f1", or "f1a", is for two labels, of the one that sorts last; "pearson" and
    # "spearman" are for labels that are numbers.
    own_metric: str = key("accuracy", one_of(*METRICS), absent="accuracy")
    # Predict GLUE's test sets, where their files exist, for its server.
    test_sets: bool = key(True, absent=False)
    # Initializations that are fine-tuned: "random" for comparison; "ema" and "lawa" if
    # the weights were averaged.
    starts: tuple[str, ...] = key(
        ("pretrained",),
        Rule(
            lambda x: x and len(set(x)) == len(x) and set(x) <= set(INITIALIZATIONS),
            f"one or more of {INITIALIZATIONS}",
        ),
    )
    # Each with a head, dropout and order of its own; the median counts.
    trials: int = key(5, at_least(1))
    # Trained in one program; 0 = all or one, whichever is faster (measured first).
    trials_at_once: int = key(0, at_least(0, "0 = measured"), absent=0)
    # Tokens of a row, special ones included; longer rows are cut.
    max_length: int = key(128, at_least(8))
    # A single text is "<cls> A <sep> <sep>" (paper 5); False = "<cls> A <sep>" (BERT).
    empty_second: bool = key(True, absent=True)
    epochs: int = key(5, at_least(1))
    batch_size: int = key(16, at_least(1))
    # If there are several, each initialization is scored at its own best one.
    learning_rates: tuple[float, ...] = key(
        (4e-5,),
        Rule(lambda x: x and min(x) > 0, "one or more positive numbers"),
    )
    b1: float = key(0.9, within("[0, 1)"))
    b2: float = key(0.98, within("[0, 1)"))
    eps: float = key(1e-6, above(0))
    weight_decay: float = key(0.0, at_least(0))
    # Fraction of a task's steps, linear; then cosine to 0.
    warmup_share: float = key(0.1, within("[0, 1)"))
    # The same number for every task; 0 = warmup_share. The authors' implementation
    # takes CoLA's 267 for all.
    warmup_steps: int = key(0, at_least(0, "0 = warmup_share"), absent=0)
    dropout: float = key(0.1, within("[0, 1)"))
    head_width: int = key(1024, at_least(1))  # of the head's hidden layer
    # The head reads the hidden state of <cls> (paper 5), which pretraining never
    # predicts, or the mean of all tokens'.
    pooling: str = key("cls", one_of("cls", "mean"), absent="cls")
    # Per task, a random sample; 0 = all rows.
    max_train_rows: int = key(0, at_least(0, "0 = all"))
