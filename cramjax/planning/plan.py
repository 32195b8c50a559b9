"""What a config needs of a card, and what the card gives: compiled, not run."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from cramjax.describe import state_bytes, state_shapes, updates_bought
from cramjax.device import micro_batch
from cramjax.device.cards import CARDS, Card
from cramjax.device.compilation import planned_bytes, recomputes
from cramjax.device.tuning import SHARE_OF_DEVICE, would_use_cudnn
from cramjax.errors import UserError
from cramjax.flops import train_flops_per_token
from cramjax.planning import calibration, compiled, target
from cramjax.planning.compiled import Kernel
from cramjax.planning.traffic import by_source
from cramjax.schema import Config, require
from cramjax.training import budget

# Shares of the card's limits that kernels are taken to reach. An H200 did 0.80 of its
# peak in a bfloat16 product of 8192^3, and a copy at 0.90 of its bandwidth; the model's
# products are smaller.
PRODUCT_SHARE = 0.75
COPY_SHARE = 0.9

# Of the card's memory, kept by the driver: one or two in a hundred. An allowance, not
# measured; JAX has its share of the rest.
DRIVER_SHARE = 0.02


def plan(
    config: Config,
    card_name: str,
    micro_batches: Sequence[int],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Compiles the training micro-step for a card and returns what that says.

    Args:
      config: to be trained; `config.micro_batch` is compiled in any case, unless it
        is 0.
      card_name: of `cards.CARDS`.
      micro_batches: others to compile; () searches for the largest that fits.
      tell: gets a line before each compilation, which takes a minute at full size.

    Returns:
      Plain numbers, ready for JSON: {"card", "memory_bytes", "memory_share",
      "usable_bytes", "calibration", "largest_micro_batch" (that fits without computing
      anything twice; 0 if none), "notes": [sentence, ...], "micro_batches": {size:
      {"fits", "recomputes", and more, see `_row`}},
      "traffic_micro_batch": config.micro_batch, or the largest that fits,
      "traffic_bytes_per_token": {source: {pass: bytes, at that one}}}.

    Raises:
      UserError: JAX's CUDA plugin is missing, or the card cannot run the config.
    """
    card = CARDS[card_name]
    notes, config = _attention(config, card)
    for size in micro_batches:
        require(
            size <= config.batch.sequences,
            "batch.sequences",
            config.batch.sequences,
            f"{size} or more, for --micro_batches={','.join(map(str, micro_batches))}",
        )
    device = target.device(card)
    usable_bytes = int(
        (1 - DRIVER_SHARE) * card.memory_bytes * memory_share() * SHARE_OF_DEVICE
    )
    steps: dict[int, Step] = {}

    def step(size: int) -> Step:
        if size not in steps:
            tell(f"compiling for the {card.title}, micro-batch {size} ...")
            steps[size] = _step(config, size, device, usable_bytes)
        return steps[size]

    given = {config.micro_batch} - {0}
    for size in (*given, *micro_batches):
        step(size)
    if not micro_batches:
        micro_batch.largest_first(
            sorted({*micro_batch.sizes(config.batch.sequences), *given}),
            usable_bytes,
            # One that was squeezed into the memory counts as too large for it.
            lambda n: float("inf") if step(n).recomputes else step(n).total_bytes,
            fixed_bytes=sum(state_bytes(config).values()),
            first=config.micro_batch or micro_batch.FIRST,
        )
    factor = calibration.factor(card_name)
    rows = {
        size: {
            "fits": done.total_bytes <= usable_bytes,
            "recomputes": done.recomputes,
            **_row(config, card, done, factor or 1.0),
        }
        for size, done in sorted(steps.items())
    }
    largest = max(
        (n for n, r in rows.items() if r["fits"] and not r["recomputes"]), default=0
    )
    shown = config.micro_batch or largest or min(steps)
    params = state_shapes(config).params
    return {
        "card": card_name,
        "memory_bytes": card.memory_bytes,
        "memory_share": memory_share(),
        "usable_bytes": usable_bytes,
        "calibration": factor,
        "largest_micro_batch": largest,
        "notes": notes + _notes(config, card, steps[shown]),
        "micro_batches": rows,
        "traffic_micro_batch": shown,
        "traffic_bytes_per_token": {
            source: {n: value / steps[shown].tokens for n, value in passes.items()}
            for source, passes in by_source(steps[shown].kernels, params).items()
        },
    }


def memory_share() -> float:
    """Returns the share of a card's memory that JAX takes: 0.75 unless told otherwise.

    Raises:
      UserError: the environment says something else than a share.
    """
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    for name in names:
        if text := os.environ.get(name):
            try:
                share = float(text)
            except ValueError:
                share = 0.0
            if not 0 < share <= 1:
                raise UserError(f"{name}={text}: must be above 0 and at most 1")
            return share
    return 0.75


def seconds(kernels: Iterable[Kernel], card: Card) -> float:
    """Returns the time that kernels should take: a roofline, not a measurement.

    Each is held up by its products or by its memory traffic, whichever takes longer;
    launching them is taken to cost nothing.
    """
    return sum(
        max(
            kernel.flops / (PRODUCT_SHARE * card.peak),
            kernel.bytes / (COPY_SHARE * card.bandwidth),
        )
        for kernel in kernels
    )


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled micro-step.

    Attributes:
      tokens: that it trains on.
      argument_bytes: mostly the state.
      temporary_bytes: at their peak.
      total_bytes: these, and results that take the place of no argument.
      recomputes: whether it was squeezed, see `compilation.recomputes`.
      kernels: that it launches.
    """

    tokens: int
    argument_bytes: int
    temporary_bytes: int
    total_bytes: int
    recomputes: bool
    kernels: list[Kernel]

    @property
    def flops(self) -> int:
        """FLOPs of its matrix products."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def wide_share(self) -> float:
        """Share of these FLOPs that are not in 16-bit numbers."""
        return sum(kernel.wide_flops for kernel in self.kernels) / self.flops


def _step(config: Config, rows: int, device: jax.Device, usable: int) -> Step:
    done = target.compile_micro_step(
        dataclasses.replace(config, micro_batch=rows), device
    )
    memory = done.memory_analysis()
    program = compiled.parse(done.as_text())
    return Step(
        tokens=rows * config.model.max_length,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        total_bytes=planned_bytes(done),
        recomputes=recomputes(done, usable),
        kernels=compiled.kernels(program),
    )


def _row(config: Config, card: Card, step: Step, factor: float) -> dict[str, Any]:
    """Returns what is known of a micro-batch; speeds are None without a peak."""
    rate = config.objective.max_mask_rate
    flops_per_token = train_flops_per_token(config.model, rate)
    outside = sum(kernel.bytes for kernel in step.kernels if not kernel.flops)
    row: dict[str, Any] = {
        "argument_bytes": step.argument_bytes,
        "temporary_bytes": step.temporary_bytes,
        "total_bytes": step.total_bytes,
        "launches": sum(kernel.launches for kernel in step.kernels),
        "traffic_bytes_per_token": outside / step.tokens,
        "flops_over_formula": step.flops / step.tokens / flops_per_token,
    }
    speeds = ("tokens_per_s", "mfu", "hours", "tokens", "updates")
    if step.wide_share > 0.01:
        return row | dict.fromkeys(speeds)
    tokens_per_s = factor * step.tokens / seconds(step.kernels, card)
    tokens = budget.tokens_bought(config.budget, tokens_per_s, flops_per_token)
    rows = step.tokens // config.model.max_length
    values = (
        tokens_per_s,
        tokens_per_s * flops_per_token / card.peak,
        tokens / tokens_per_s / 3600,
        tokens,
        updates_bought(config, rows, tokens),
    )
    return row | dict(zip(speeds, values, strict=True))


def _attention(config: Config, card: Card) -> tuple[list[str], Config]:
    """Returns the config with an attention, and what has to be said about it."""
    if config.model.attention == "auto":
        cudnn = card.has_bfloat16 and would_use_cudnn(config)
        name = "cudnn" if cudnn else "xla"
        model = dataclasses.replace(config.model, attention=name)
        note = f"model.attention=auto is decided on the card; this is {name}'s."
        return [note], dataclasses.replace(config, model=model)
    require(
        config.model.attention != "cudnn" or card.has_bfloat16,
        "model.attention",
        config.model.attention,
        f"'xla' on the {card.title}: cuDNN's needs compute capability 8.0, the card "
        "has {}.{}".format(*card.compute_capability),
    )
    return [], config


def _notes(config: Config, card: Card, step: Step) -> list[str]:
    """Returns sentences on what the numbers leave out."""
    notes = []
    if step.wide_share > 0.01:
        wide = f"{step.wide_share:.0%} of the products' FLOPs are in float32"
        if config.model.dtype == "bfloat16" and not card.has_bfloat16:
            wide += (
                f": the {card.title} has no bfloat16, XLA takes float32 for it; pass "
                "--config.model.dtype=float16"
            )
        notes.append(f"{wide}. The peak is one of 16-bit products: no speed is given.")
    if config.curriculum.lengths:
        notes.append(
            "The micro-step is that of whole blocks; curriculum.lengths="
            f"{config.curriculum.lengths} has shorter sequences, too."
        )
    return notes
