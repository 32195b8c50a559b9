"""What is in a packed corpus, as Markdown with a figure, beside its blocks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cramjax import files
from cramjax.data.corpus import Corpus

REPORT, FIGURE = "report.md", "lengths.png"
SAMPLES = 5
TOP_TOKENS = 40


def write(
    corpus: Corpus,
    counts_V: np.ndarray,
    lengths: dict[str, int],
    filtered: Sequence[str],
) -> Path:
    """Writes report.md and lengths.png into the corpus's folder.

    Args:
      corpus: the finished one.
      counts_V: how often each token is in the training blocks.
      lengths: {exponent n: documents of 2^(n-1) to 2^n - 1 tokens}.
      filtered: beginnings of documents that the token filter dropped.

    Returns:
      The report's path.
    """
    manifest = corpus.manifest
    documents, tokens = manifest["documents"], manifest["tokens"]
    total = sum(documents.values())
    kept_tokens = tokens["train"] + tokens["held_out"]
    rows = {
        "sources": ", ".join(Path(s["path"]).name for s in manifest["sources"]),
        "documents": f"{total:,}",
        "dropped by the token filter": _share(documents["filtered"], total),
        "held out": _share(documents["held_out"], total),
        "text": f"{manifest['bytes'] / 1e6:,.1f} MB",
        "training blocks": f"{len(corpus.train):,} of {corpus.train.length} tokens",
        "held-out blocks": f"{len(corpus.held_out):,}",
        "tokens per byte": f"{kept_tokens / manifest['bytes']:.3f}",
        "unigram entropy": f"{manifest['unigram_entropy']:.3f} nats per token",
        "entries never used": _share(int((counts_V == 0).sum()), len(counts_V)),
    }
    dropped = {"Dropped by the token filter": filtered[:SAMPLES]}
    if "duplicates" in manifest:
        found, examples = manifest["duplicates"], manifest["duplicates"]["examples"]
        rows["equal to an earlier document, dropped"] = f"{found['documents']:,}"
        rows["spans of earlier text, cut out"] = f"{found['spans']:,}"
        rows["bytes of both"] = _share(found["bytes"], found["of_bytes"])
        dropped["Dropped, equal to an earlier document"] = examples["documents"]
        dropped["Cut out, occurred before"] = examples["spans"]
    rows |= {what: f"{count:,}" for what, count in manifest["problems"].items()}
    words = corpus.tokenizer
    top = np.argsort(-counts_V, kind="stable")[:TOP_TOKENS]
    frequent = ", ".join(
        f"`{words.id_to_token(int(i))}` {counts_V[i] / counts_V.sum():.2%}" for i in top
    )
    generator = np.random.Generator(np.random.Philox(key=0))
    chosen = generator.choice(len(corpus.train), min(SAMPLES, len(corpus.train)), False)
    samples = [
        words.decode(block, skip_special_tokens=False)
        for block in corpus.train.take(np.sort(chosen))
    ]
    _figure(lengths).savefig(corpus.path / FIGURE, dpi=120)
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items())
    files.write_text(
        corpus.path / REPORT,
        f"# {corpus.path.name.removesuffix('.partial')}\n\n"
        f"| what | value |\n|---|---|\n{table}\n\n"
        f"![tokens of the documents]({FIGURE})\n\n"
        f"## Most frequent tokens\n\n{frequent}\n\n"
        + _section("Blocks, chosen at random", samples)
        + "".join(
            "\n" + _section(what, texts) for what, texts in dropped.items() if texts
        ),
    )
    return corpus.path / REPORT


def _section(title: str, texts: Sequence[str]) -> str:
    quoted = "".join("\n    " + " ".join(text.splitlines()) + "\n" for text in texts)
    return f"## {title}\n{quoted}"


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / max(whole, 1):.2%})"


def _figure(lengths: dict[str, int]) -> Figure:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    found = [int(n) for n in lengths]
    powers = range(min(found), max(found) + 1)
    axes.bar(
        [f"{2 ** (n - 1):,}" for n in powers],
        [lengths.get(str(n), 0) for n in powers],
        0.9,
    )
    axes.set(xlabel="tokens of a document, at least", ylabel="documents")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", rotation=45)
    return figure
