"""What is in a packed corpus, as Markdown with a figure, beside its blocks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramjax import files
from cramjax.data.corpus import Corpus, total
from cramjax.page import Block, Code, Heading, Table, to_markdown

REPORT, FIGURE = "report.md", "lengths.png"
SAMPLES = 5
TOP_TOKENS = 40
QUOTED = ("Blocks", "Dropped", "Cut out")  # beginnings of sections that quote text


def write(
    corpus: Corpus, counts_V: np.ndarray, shards: Sequence[Mapping[str, Any]]
) -> None:
    """Writes report.md and lengths.png into the corpus's folder.

    `counts_V` is how often each token occurs in the training blocks, `shards` the facts
    of `encode.encode_group`.
    """
    manifest, tokenizer = corpus.manifest, corpus.tokenizer
    documents, tokens = manifest["documents"], manifest["tokens"]
    number = sum(documents.values())
    kept_tokens = tokens["train"] + tokens["held_out"]
    rows = {
        **{s["source"]: f"{s['share']:.1%} of the text" for s in manifest["text"]},
        "licence": manifest["licence"] or "not noted",
        "made by": f"cramjax {manifest['code']}",
        "documents read": f"{number:,}",
        "to train on": f"{documents['train']:,} in {len(corpus.train):,} blocks of "
        f"{corpus.train.length} tokens",
        "held out": f"{_fraction(documents['held_out'], number)} in "
        f"{len(corpus.held_out):,} blocks",
        "dropped": _fraction(documents["filtered"], number),
        **{
            f"dropped by data.{key}": _fraction(count, number)
            for key, count in manifest["filtered"].items()
        },
        "text": f"{manifest['bytes'] / 1e6:,.1f} MB",
        "tokens per byte": f"{kept_tokens / manifest['kept_bytes']:.3f}",
        "unigram entropy": f"{manifest['unigram_entropy']:.3f} nats per token",
        "entries never used": _fraction(int((counts_V == 0).sum()), len(counts_V)),
    }
    dropped = {
        f"Dropped by data.{key}": [
            text for shard in shards for text in shard["examples"].get(key, ())
        ][:SAMPLES]
        for key in manifest["filtered"]
    }
    if "duplicates" in manifest:
        found = manifest["duplicates"]
        rows["equal to an earlier document, dropped"] = f"{found['documents']:,}"
        rows["spans of earlier text, cut out"] = f"{found['spans']:,}"
        rows["bytes of these"] = _fraction(found["bytes"], found["of_bytes"])
        dropped["Cut out, occurred before"] = found["examples"]
        if "similar" in found:
            rows["similar to an earlier document, dropped"] = _fraction(
                found["similar"], found["of_documents"]
            )
            dropped["Similar: kept, dropped, kept, ..."] = found["similar_examples"]
    rows |= {what: f"{count:,}" for what, count in manifest["problems"].items()}
    frequent = ", ".join(
        f"`{tokenizer.id_to_token(int(i))}` {counts_V[i] / counts_V.sum():.2%}"
        for i in np.argsort(-counts_V, kind="stable")[:TOP_TOKENS]
    )
    generator = np.random.Generator(np.random.Philox(key=0))
    chosen = generator.choice(len(corpus.train), min(SAMPLES, len(corpus.train)), False)
    samples = [
        tokenizer.decode(block, skip_special_tokens=False)
        for block in corpus.train.take(np.sort(chosen))
    ]
    settings = [f"{key}: {value}" for key, value in manifest["settings"].items()]
    blocks: list[Block] = [
        Heading(corpus.path.name.removesuffix(".partial"), 1),
        Table(["what", "value"], rows.items()),
        f"![tokens of the documents]({FIGURE})",
        Heading("Settings"),
        Code("\n".join(settings)),
        Heading("Most frequent tokens"),
        frequent,
    ]
    for title, texts in {"Blocks, chosen at random": samples, **dropped}.items():
        if texts:
            quoted = (Code(" ".join(text.splitlines())) for text in texts)
            blocks += [Heading(title), *quoted]
    files.write_text(corpus.path / REPORT, to_markdown(blocks) + "\n")
    lengths = total(shard["lengths"] for shard in shards)
    with files.replacing(corpus.path / FIGURE) as file:
        _figure(lengths).savefig(file, dpi=120)


def samples(folder: Path) -> dict[str, list[str]]:
    """Returns {title: texts} of a corpus's report: blocks, and what was dropped."""
    path = folder / REPORT
    sections = path.read_text().split("\n\n## ")[1:] if path.exists() else []
    found = {}
    for title, *texts in (section.split("\n\n    ") for section in sections):
        if title.startswith(QUOTED):
            found[title] = [text.strip() for text in texts]
    return found


def _fraction(part: int, whole: int) -> str:
    return f"{part:,} ({part / max(whole, 1):.2%})"


def _figure(lengths: Mapping[str, int]) -> Any:
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    found = [int(n) for n in lengths]
    powers = range(min(found), max(found) + 1)
    counts = [lengths.get(str(n), 0) for n in powers]
    axes.bar([f"{2 ** (n - 1):,}" for n in powers], counts, 0.9)
    axes.set(xlabel="tokens of a document, at least", ylabel="documents")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", rotation=45)
    return figure
