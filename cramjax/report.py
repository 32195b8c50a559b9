"""report.md and report.html: what a run has written, for people to read."""

from pathlib import Path
from typing import Any, NamedTuple

from cramjax import examples, figures, files, page, word_order
from cramjax.checkpoints.weights import WEIGHTS
from cramjax.config import OPERATIONAL_KEYS, Config, flatten, to_dict
from cramjax.data import report as corpus_report
from cramjax.data.corpus import MANIFEST, Corpus
from cramjax.glue import evaluate, scores, tables
from cramjax.page import Block, Code, Figure, Fold, Heading, Table
from cramjax.training import log as metrics_log
from cramjax.training.clock import CHARGED, FREE
from cramjax.training.loop import RESUMED, ROLLED_BACK
from cramjax.training.pretrain import METRICS

REPORT, HTML = "report.md", "report.html"
# Keys of pretrain.json that earlier versions did not write.
NEEDED = {
    "averages",
    "bits_per_byte",
    "code",
    "energy_kwh",
    "first_step_s",
    "held_out_accuracy",
    "mfu",
    "peak_memory_bytes",
    "seconds",
    "skipped",
}
# A loss is clearly below the unigram entropy if it is lower by this fraction. Models
# that have learned little more than word frequencies stay 2 to 4 % below for long.
CLEARLY = 0.05
# Of the paper's run on an A6000: 8.7e9 tokens in 24 hours (arXiv 2212.14034, Table 1),
# of 622.85 MFLOP each.
PAPER_FLOPS, PAPER_ROW = 5.4e18, "crammed, A6000"


class Run(NamedTuple):
    """A finished run: what its workdir holds."""

    config: Config
    manifest: dict[str, Any]  # of the corpus
    summary: dict[str, Any]  # pretrain.json
    results: dict[str, Any]  # "tasks" of glue.json
    workdir: Path


def write(run: Run) -> Path:
    """Writes report.md, its figures, and report.html; returns the path of report.md."""
    config, manifest, summary, results, workdir = run
    events = metrics_log.read(workdir / METRICS)
    # A manifest that was copied by hand has no name.
    folder = Path(config.data.dir).expanduser() / manifest.get("name", "")
    sources = ", ".join(source["source"] for source in manifest.get("text", ()))
    blocks = [
        Heading(workdir.name, 1),
        f"A masked language model of {summary['parameters']:,} parameters (BERT-base: "
        f"110 million), pretrained from {config.init_from or 'random weights'} on "
        f"{summary['tokens']:,} tokens:"
        f" {manifest['tokens']['train']:,} tokens of text"
        f"{sources and f' ({sources})'}, read {summary['passes']:.1f} times. It was "
        "made by",
        Code(summary.get("command", "not recorded")),
        verdict(run),
        _beside_the_paper(run),
        _irregular(run, events),
        *_learned_section(config, summary),
        *_results_section(run),
        *_training_section(config, summary),
        *figures.blocks(config, events, summary),
        *_corpus_sections(run, folder),
        *_origin_section(run),
        *_settings_section(config),
        *_use_section(workdir),
    ]
    for block in blocks:
        for part in block.blocks if isinstance(block, Fold) else [block]:
            if isinstance(part, Figure):
                with files.replacing(workdir / f"{part.name}.png") as file:
                    part.drawn.savefig(file, dpi=120)
    files.write_text(workdir / HTML, page.to_html(workdir.name, blocks))
    files.write_text(workdir / REPORT, page.to_markdown(blocks) + "\n")
    return workdir / REPORT


def verdict(run: Run) -> str:
    """Returns what the numbers mean, in a few sentences."""
    sentences = [_of_pretraining(run.summary), *_of_initializations(run)]
    ahead = tables.bag_of_words_ahead(run.results, run.config.glue)
    if titles := next(iter(ahead.values()), []):
        sentences.append(
            "A bag of words, which knows single words and pairs of neighbours, does as "
            f"well as the fine-tuned model, or better, on {'; '.join(titles)}."
        )
    return " ".join(sentences)


def _of_initializations(run: Run) -> list[str]:
    """Returns a sentence about what pretraining gains in fine-tuning, if known."""
    path = run.workdir / evaluate.RESULTS
    if not run.results or not path.exists():
        return []
    found = files.read_json(path, evaluate.DELETE_IT).get("differences", {})
    groups: dict[str, list[str]] = {}
    same, better, worse = "no different", "better", "worse"
    pairs = found.get("pretrained - random", {})
    if not pairs:  # the other way round
        pairs, better, worse = found.get("random - pretrained", {}), worse, better
    for name, gap in pairs.items():
        how = better if gap["low"] > 0 else same
        how = worse if gap["high"] < 0 else how
        groups.setdefault(how, []).append(run.results[name]["title"])
    if not groups:
        return []
    results = "; ".join(f"{how} on {', '.join(groups[how])}" for how in groups)
    return [
        "As far as these trials can tell, fine-tuning from the pretrained weights, "
        f"compared with random ones, is {results}."
    ]


def _beside_the_paper(run: Run) -> str:
    """Returns what the budget was, and whether the model is better than the paper's."""
    flops, seconds = run.summary["model_flops"], run.summary["elapsed_s"]
    hours, minutes = f"{seconds / 3600:.1f} hours", f"{seconds / 60:.3g} minutes"
    duration = hours if seconds > 7200 else minutes
    text = (
        f"Training took {duration} on {run.summary['device']} and {flops:.2g} model "
        f"FLOPs, {100 * flops / PAPER_FLOPS:.2g} % of what the paper's model took in "
        f"24 hours on an A6000 ({PAPER_FLOPS:.2g}; Geiping & Goldstein, arXiv "
        "2212.14034). "
    )
    found = scores.averages(run.results, "pretrained").get("nine", {"title": ""})
    if found["title"] != scores.AVERAGES["nine"].title:
        return (
            f"{text}It was not scored on all rows of all nine numbers of GLUE, so it "
            "cannot be compared with that model. The paper has no scores at smaller "
            "budgets."
        )
    text += (
        f"Its mean of the nine GLUE numbers is **{found['value']:.1f}**, that of the "
        f"paper's model {tables.PAPER_GLUE[PAPER_ROW][-1]}"
    )
    if tables.departures(run.config.glue):
        text += ", but it was not fine-tuned as in the paper, so this decides nothing"
    return f"{text}."


def _irregular(run: Run, events: list[dict[str, Any]]) -> str:
    """Returns what went wrong."""
    summary = run.summary
    seen = [line.get("event") for line in events]
    counts = {
        "interruptions of training": seen.count(RESUMED),
        "returns to a checkpoint, with a lower learning rate": seen.count(ROLLED_BACK),
        "micro-batches skipped because a gradient was not finite": summary["skipped"],
        "seconds of lost work": round(summary["seconds"]["lost"]),
        **run.manifest.get("problems", {}),
    }
    found = [f"{what}: {number:,}" for what, number in counts.items() if number]
    for entry in run.results.values():
        found += scores.divergences(entry)
    nothing = (
        "nothing (no interruption, no return to a checkpoint, no lost work, no skipped "
        "micro-batch, no trial that diverged, no damaged text)"
    )
    return f"**What went wrong**: {'; '.join(found) or nothing}."


def _results_section(run: Run) -> list[Block]:
    results, glue = run.results, run.config.glue
    if not results:
        return []
    found = files.read_json(run.workdir / evaluate.RESULTS, evaluate.DELETE_IT)
    names = {
        "pretrained": "pretrained",
        "random": "random initialization",
        "ema": "pretrained, moving average",
        "lawa": "pretrained, latest weights' average",
    }
    header = ["task", "metric", "training rows", "dev rows"]
    header += [names[start] for start in glue.starts]
    header += ["bag of words", "majority class"]
    rows = []
    for name, result in results.items():
        row = [result["title"], result["metric"]]
        row += [tables.rows_used(result, split) for split in ("train", "dev")]
        for start in glue.starts:
            best = result["starts"].get(start)
            row.append(
                f"{best['median']:.1f} ({best['min']:.1f} to {best['max']:.1f}) "
                f"at {best['best_rate']:g}"
                f"{tables.diverged_mark(results, start, [name])}"
                if best
                else "-"
            )
        rows.append([*row, *tables.baseline_cells(result)])
    below = tables.conditions(run.config)
    return [
        Heading("Fine-tuning"),
        f"Scores on dev sets, in percent (correlations times 100), higher is better: "
        f"the median (lowest to highest) of {glue.trials} trials of {glue.epochs} "
        f"epochs. {tables.how_chosen(glue)}",
        Table(header, rows),
        below,
        *tables.bag_of_words(results, glue),
        *tables.beside_the_paper(results, glue, below),
        *tables.differences_table(results, found["differences"], below),
        *tables.averages_table(results, glue, below),
        *tables.notes(results, glue),
    ]


def _learned_section(config: Config, summary: dict[str, Any]) -> list[Block]:
    order = summary.get("word_order")
    rows = [
        [
            "held-out loss (lower is better)",
            f"**{summary['held_out_loss']:.3f}** nats per masked token",
            f"token frequencies alone: {summary['unigram_entropy']:.3f} (the unigram "
            "entropy of the training text)",
        ],
        *(
            [f"held-out loss, {name} of the weights", f"{value:.3f} nats", ""]
            for name, value in summary["averages"].items()
        ),
        [
            "held-out accuracy (higher is better)",
            f"{summary['held_out_accuracy']:.1%}",
            "",
        ],
        [
            "held-out bits per byte (lower is better)",
            f"{summary['bits_per_byte']:.3f}",
            "",
        ],
    ]
    notes = (
        "The model is measured on documents that it never trained on. The held-out "
        "loss is how surprised it is by a hidden token, with "
        f"{config.validation.mask_rate:.0%} of the tokens hidden; the accuracy is how "
        "often its first guess is right; bits per byte are the loss in bits for each "
        "byte of the hidden text, by which models with other tokenizers can be "
        "compared."
    )
    if order:
        error = word_order.margin(order["model"], order["pairs"])
        others = f"bigram model {order['bigram']:.1f} %, chance 50 %"
        score = f"**{order['model']:.1f} %** (+-{error:.1f})"
        rows.insert(0, ["word order (higher is better)", score, others])
        notes += (
            " Word order is how often the model finds a sentence more likely than the "
            f"same sentence with two neighbouring words swapped, in {order['pairs']} "
            "pairs (+-: 95 % interval); each token is masked in turn and their "
            "log-likelihoods are added up. The bigram model only counts which token "
            "follows which in the training text."
        )
    elif "word_order" in summary:
        notes += f" {word_order.line(None).capitalize()}."
    header = ["measured", "this model", "for comparison"]
    return [Heading("What pretraining taught"), Table(header, rows), notes]


def _of_pretraining(summary: dict[str, Any]) -> str:
    """Returns a sentence about the held-out loss and word order."""
    order = summary.get("word_order")
    gap = 1 - summary["held_out_loss"] / summary["unigram_entropy"]
    error = word_order.margin(order["model"], order["pairs"]) if order else 0.0
    knows_order = order and order["model"] - error > 50
    near_chance = "its word order is no better than chance"
    if gap < CLEARLY:
        text = (
            f"**The model is {'no' if gap <= 0 else 'hardly'} better than token "
            "frequencies**: its held-out loss is not clearly below the unigram entropy"
        )
        if knows_order:
            text += ", though it has begun to learn word order"
        elif order:
            text += f", and {near_chance}"
        return f"{text}. It needs more training, more text or another learning rate."
    text = (
        f"The held-out loss is {gap:.0%} below what token frequencies alone would give"
    )
    if not order:
        return f"{text}."
    if not knows_order:
        return (
            f"{text}, but **{near_chance}**: the model has learned which words occur "
            "together, not how they are put together."
        )
    ahead = order["model"] - order["bigram"]
    how = "about as often as" if abs(ahead) < error else "more often than"
    if ahead <= -error:
        how = "less often than"
    return (
        f"{text}, and the model recognizes the original word order {how} the bigram "
        f"model ({order['model']:.1f} against {order['bigram']:.1f} %)."
    )


def _training_section(config: Config, summary: dict[str, Any]) -> list[Block]:
    budget = getattr(config.budget, config.budget.kind)
    train_loss = summary["train_loss"]
    updates = f"{summary['updates']:,}, from {summary['micro_steps']:,} micro-batches"
    charged = f"{summary['elapsed_s']:.0f} s: {_seconds(summary, CHARGED)}"
    tokens_per_s = summary["tokens_per_s"]
    gpus = summary.get("devices", 1)  # earlier versions had one
    each = f", {tokens_per_s / gpus:,.0f} on each of {gpus} GPUs" * (gpus > 1)
    rows = [
        ["budget", f"{budget:,.12g} {config.budget.kind}"],
        ["tokens", f"{summary['tokens']:,} ({summary['passes']:.2f} passes)"],
        ["updates", updates],
        ["micro-batches skipped, not finite", f"{summary['skipped']:,}"],
        ["last training loss", "-" if train_loss is None else f"{train_loss:.3f} nats"],
        ["training time", charged],
        ["in addition, not counted", _seconds(summary, FREE)],
        ["speed", f"{tokens_per_s:,.0f} tokens/s{each}"],
        *_device_rows(summary),
        ["model FLOPs", f"{summary['model_flops']:.3g}"],
    ]
    return [
        Heading("Training"),
        Table(["", ""], rows),
        "Compilation, data loading, checkpoints and work repeated after a crash count "
        "towards the training time, and towards a budget of hours. Building the "
        "corpus, validation and fine-tuning do not.",
    ]


def _device_rows(summary: dict[str, Any]) -> list[list[str]]:
    """Returns what was measured of start-up and device; None is left out."""
    start = "from the start of the last session to its first step"
    mfu = "MFU, the fraction of the card's dense 16-bit peak, over the training time"
    energy = "energy drawn by the card, validation included"
    peak = summary["peak_memory_bytes"]
    rows = [
        (start, summary["first_step_s"], "{:.1f} s"),
        (mfu, summary["mfu"], "{:.1%}"),
        ("peak device memory in the last session", peak and peak / 1e9, "{:.1f} GB"),
        (energy, summary["energy_kwh"], "{:.3g} kWh"),
    ]
    return [[title, text.format(x)] for title, x, text in rows if x is not None]


def _seconds(summary: dict[str, Any], kinds: tuple[str, ...]) -> str:
    spent = {kind: summary["seconds"][kind] for kind in kinds}
    shown = [f"{kind} {s:.0f} s" for kind, s in spent.items() if s >= 0.5]
    return ", ".join(shown) or "0 s"


def _corpus_sections(run: Run, folder: Path) -> list[Block]:
    """Returns examples and samples of the text, if the corpus is at hand."""
    blocks, quoted = [], []
    needed = (folder / MANIFEST, run.workdir / WEIGHTS)
    if run.summary.get("word_order") and all(path.exists() for path in needed):
        blocks = examples.blocks(run.workdir, Corpus(folder))
    for title, texts in corpus_report.samples(folder).items():
        quoted += [Heading(title, 3), *map(Code, texts)]
    return [*blocks, *([Fold("The text", quoted)] if quoted else [])]


def _origin_section(run: Run) -> list[Block]:
    """Returns the model's shape, text, software and hardware."""
    config, manifest, summary = run.config, run.manifest, run.summary
    model, documents = config.model, manifest["documents"]
    repeats = f", run {model.repeats} times" if model.repeats > 1 else ""
    versions = summary.get("versions", {})
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    libraries = libraries or (
        "the versions of Python and its libraries were not recorded"
    )
    sources = [
        f"{source['source']}: {source['chars'] / 1e6:,.1f} million characters, "
        f"{source['share']:.1%} of the text"
        for source in manifest.get("text", ())
    ]
    rows = [
        [
            "model",
            f"{model.layers} layers{repeats}, width {model.width}, {model.heads} "
            f"heads, {model.ffn} feed-forward width {model.ffn_width}, "
            f"{model.positions} positions, vocabulary {model.vocab_size:,}, sequences "
            f"of {model.max_length} tokens; {summary['parameters']:,} parameters",
        ],
        [
            "text",
            f"{documents['train']:,} documents ({manifest['tokens']['train']:,} "
            f"tokens) to train on, {documents['held_out']:,} held out, "
            f"{documents['filtered']:,} dropped by filters",
        ],
        *(["source", source] for source in sources),
        ["licence", config.data.licence or "not stated"],
        ["software at training time", f"cramjax {summary['code']}; {libraries}"],
        ["hardware", summary["device"]],
    ]
    return [Heading("How it was made"), Table(["", ""], rows)]


def _settings_section(config: Config) -> list[Block]:
    """Returns a table of the keys that differ from the paper's recipe."""
    recipe = flatten(to_dict(Config()))
    rows = [
        [key, shown(value), shown(recipe[key])]
        for key, value in flatten(to_dict(config)).items()
        if value != recipe[key] and key not in OPERATIONAL_KEYS
    ]
    if not rows:
        return ["All settings are those of the paper's recipe."]
    note = (
        "These differ from the recipe of the paper that cramjax follows (arXiv "
        "2212.14034); 0 often means none or all, see `cramjax/config/`."
    )
    return [Fold("Settings", [note, Table(["key", "this run", "recipe"], rows)])]


def _use_section(workdir: Path) -> list[Block]:
    command = f"python scripts/fill_mask.py --checkpoint={workdir}"
    return [
        Heading("Using the model"),
        Code(f'{command} "it was a <mask> day"'),
        f"In Python, `cramjax.load({str(workdir)!r})` returns the model, which fills "
        "masks and turns texts into vectors; docs/models.md shows how, and how to "
        "continue its pretraining. To repeat the run, pass a new --workdir to the "
        "command at the top. All fine-tuning trials are in glue.md.",
    ]


def shown(value: Any) -> str:
    """Returns the value of a key of the config, for a table."""
    if isinstance(value, float):
        return f"{value:.12g}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text or "-"
