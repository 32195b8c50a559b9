"""Parameters, FLOPs and memory of a config, and what its budget buys on each card.

cramjax describe --config=configs/a4000.py [--mfu=0.4] [--json=FILE]
    [--config.devices=4]

Nothing is trained, and no GPU is needed. Rows of the architecture table go by name:
--config=configs/ablations/architecture.py:original-bert
"""

from collections.abc import Sequence
from typing import Any

from cramjax import files
from cramjax.config.key import within
from cramjax.device.cards import CARDS
from cramjax.flags import number, parse_command_line


def command(argv: Sequence[str]) -> None:
    """Prints the tables, and writes the numbers to --json."""
    config, extras = parse_command_line(argv, ["mfu", "json"])
    mfu = number(extras, "mfu", 0.4, within("(0, 1]"))
    path = files.to_be_written("json", extras["json"])
    from cramjax.checkpoints import initial  # imports JAX, which takes seconds
    from cramjax.describe import all_reduce_line, describe

    config, _ = initial.begin(config)
    facts = describe(config, mfu)
    _print(facts, mfu)
    for card in CARDS.values() if config.devices > 1 else ():
        print(all_reduce_line(config, card))
    if path:
        files.write_json(path, {"mfu": mfu, **facts})


def _print(facts: dict[str, Any], mfu: float) -> None:
    for title, unit, divisor, parts in (
        ("parameters", "", 1, facts["parameters"]),
        ("FLOPs per token", "MFLOP", 1e6, facts["flops_per_token"]),
        ("training state", "MB", 1e6, facts["state_bytes"]),
    ):
        print(title)
        for part, value in [*parts.items(), ("total", sum(parts.values()))]:
            text = f"{value:,}" if divisor == 1 else f"{value / divisor:,.2f}"
            print(f"  {part:22}{text:>15} {unit}".rstrip())
    print(f"the budget at {mfu:.0%} of the card's dense 16-bit peak")
    print(f"  {'card':14}{'tokens/s':>12}{'hours':>9}{'tokens':>10}{'updates':>10}")
    for name, row in facts["cards"].items():
        print(
            f"  {CARDS[name].title:14}{row['tokens_per_s']:12,.0f}{row['hours']:9.2f}"
            f"{row['tokens']:10.2e}{row['updates']:10,.0f}"
        )
