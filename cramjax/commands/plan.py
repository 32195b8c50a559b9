"""Whether a config fits a card you do not have, and how fast it would train there.

cramjax plan --config=configs/a4000.py --card=a4000 [--micro_batches=64,128]
    [--config.devices=4] [--json=FILE]

It compiles the training step for the card, which takes about a minute per micro-batch
at full size, and analyzes the program. It needs no GPU, but JAX's CUDA plugin (the
extra cuda12 or cuda13). The config's own micro-batch is always compiled (unless it is
0). Without --micro_batches it searches for the largest one that fits.
"""

import os
from collections.abc import Sequence
from typing import Any

from cramjax import files
from cramjax.device.cards import CARDS, Card
from cramjax.errors import UserError
from cramjax.flags import parse_command_line


def command(argv: Sequence[str]) -> None:
    """Prints the tables, and writes the numbers to --json."""
    config, extras = parse_command_line(argv, ["card", "micro_batches", "json"])
    name = extras["card"].lower()
    if name not in CARDS:
        raise UserError(
            f"--card={extras['card']}: must be one of {', '.join(CARDS)}"
            if name
            else f"no card: pass --card=a4000, or another of {', '.join(CARDS)}"
        )
    micro_batches = _numbers(extras["micro_batches"])
    path = files.to_be_written("json", extras["json"])
    os.environ["JAX_PLATFORMS"] = "cpu"  # does not use a GPU even if there is one
    from cramjax.checkpoints import initial  # imports JAX, which takes seconds
    from cramjax.plan import plan

    config, _ = initial.begin(config)
    facts = plan(config, name, micro_batches)
    _print(facts, CARDS[name])
    if path:
        files.write_json(path, facts)


def _numbers(text: str) -> list[int]:
    parts = text.split(",") if text else []
    if not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--micro_batches={text}: must be like 64,96,128")
    return [int(part) for part in parts]


def _print(facts: dict[str, Any], card: Card) -> None:
    major, minor = card.compute_capability
    print(
        f"{card.title}: {card.memory_gib} GiB, {card.bandwidth_gbps:,.0f} GB/s, "
        f"{card.peak_tflops:g} TFLOP/s (dense, 16-bit), sm_{major}{minor}"
    )
    usable_gb, fraction = facts["usable_bytes"] / 1e9, facts["memory_share"]
    print(
        f"memory: {usable_gb:.2f} GB, the {fraction:.0%} that JAX takes "
        "(XLA_CLIENT_MEM_FRACTION) less a reserve"
    )
    micro_batch = facts["traffic_micro_batch"]
    row = facts["micro_batches"][micro_batch]
    print(f"of these the training state takes {row['argument_bytes'] / 1e9:.2f} GB")
    _print_sizes(facts["micro_batches"])
    largest = facts["largest_micro_batch"]
    print(
        "largest micro-batch that fits without computing twice, of these: "
        f"{largest or 'none'}"
    )
    if any(row["recomputes"] for row in facts["micro_batches"].values()):
        print("  tight: it fits, but XLA has to compute some things twice for that")
    print("  MB/token: memory traffic outside matrix products")
    print("  FLOPs: of the compiled matrix products, over the formula's")
    factor = facts["calibration"]
    how = f"corrected by a measured {factor:.2f}" if factor else "not calibrated"
    print(f"  tokens/s and what follows from it: an estimate, {how} on this card")
    for note in facts["notes"]:
        print(f"  {note}")
    print(f"traffic outside matrix products, KB per token, micro-batch {micro_batch}")
    _print_traffic(facts["traffic_bytes_per_token"])


def _print_sizes(rows: dict[int, dict[str, Any]]) -> None:
    widths = {
        "micro-batch": 13,
        "temporaries": 15,
        "fits": 6,
        "MB/token": 10,
        "FLOPs": 7,
        "tokens/s": 11,
        "MFU": 7,
        "hours": 7,
        "tokens": 10,
        "updates": 9,
    }
    print("".join(f"{name:>{width}}" for name, width in widths.items()))
    for size, row in rows.items():
        cells = {
            "micro-batch": str(size),
            "temporaries": f"{row['temporary_bytes'] / 1e9:.2f} GB",
            "fits": ("tight" if row["recomputes"] else "yes") if row["fits"] else "no",
            "MB/token": f"{row['traffic_bytes_per_token'] / 1e6:.2f}",
            "FLOPs": f"{row['flops_over_formula']:.2f}",
        }
        if row["tokens_per_s"] is not None:
            cells |= {
                "tokens/s": f"{row['tokens_per_s']:,.0f}",
                "MFU": f"{row['mfu']:.1%}",
                "hours": f"{row['hours']:.1f}",
                "tokens": f"{row['tokens']:.2e}",
                "updates": f"{row['updates']:,.0f}",
            }
        print("".join(f"{cells.get(n, '-'):>{width}}" for n, width in widths.items()))


def _print_traffic(traffic: dict[str, dict[str, float]]) -> None:
    total = sum(sum(row.values()) for row in traffic.values())
    columns = ("forward", "backward", "update")
    print(f"  {'':22}" + "".join(f"{name:>10}" for name in (*columns, "fraction")))
    for source, row in traffic.items():
        parts = "".join(f"{row[name] / 1e3:10,.0f}" for name in columns)
        print(f"  {source:22}{parts}{sum(row.values()) / total:10.1%}")
