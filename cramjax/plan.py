"""What a config needs of a card, and how fast it would train: compiled, not run.

XLA compiles for a described GPU without a driver, as long as JAX's CUDA plugin is
installed. Nothing is autotuned then: which of several kernels is the fastest is only
decided when a real card compiles for itself.
"""

import collections
import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from cramjax.config import Config, require
from cramjax.describe import (
    all_reduce_line,
    on_card,
    state_shapes,
    updates_per_micro_step,
)
from cramjax.device import tuning
from cramjax.device.cards import CARDS, Card
from cramjax.device.compile import planned_bytes, recomputes, tree_bytes
from cramjax.errors import UserError
from cramjax.hlo import Kernel, kernels
from cramjax.model.flops import train_flops_per_token
from cramjax.training import train_step
from cramjax.training.optimizer import ONCE_AN_UPDATE

logger = logging.getLogger(__name__)

# {card: {"factor": measured over estimated tokens/s, "micro_batches": {...}}}, written
# by scripts/check_gpu.py.
CALIBRATION = Path(__file__).with_name("calibration.json")

# Fractions of the card's limits that kernels are assumed to reach. An H200 reached 0.80
# of its peak in a bfloat16 product of 8192^3, and 0.90 of its bandwidth in a copy; the
# model's products are smaller.
PRODUCT_FRACTION = 0.75
COPY_FRACTION = 0.9

# Of the products' FLOPs, those of other than 16-bit numbers: Muon's are below it, a
# model in float32 is above it.
WIDE_FRACTION = 0.05

# Fraction of the card's memory that the driver keeps: an allowance, not measured.
DRIVER_FRACTION = 0.02

PASSES = ("forward", "backward", "update")
SPEEDS = ("tokens_per_s", "mfu", "hours", "tokens", "updates")


def plan(
    config: Config, card_name: str, micro_batches: Sequence[int]
) -> dict[str, Any]:
    """Compiles the training micro-step for a card and returns what that shows.

    Args:
      config: `config.micro_batch` is compiled in any case, unless it is 0.
      card_name: a key of `cards.CARDS`.
      micro_batches: others to compile; () searches for the largest that fits.

    Returns:
      Plain numbers, ready for JSON: {"card", "memory_bytes", "memory_share",
      "usable_bytes", "calibration", "largest_micro_batch" (that fits without computing
      anything twice; 0 if none), "notes": [sentence, ...], "micro_batches": {size: see
      `_row`}, "traffic_micro_batch": config.micro_batch, or the largest that fits,
      "traffic_bytes_per_token": {source: {pass: bytes, at that one}}}.

    Raises:
      UserError: JAX's CUDA plugin is missing, or the card cannot run the config.
    """
    card = CARDS[card_name]
    notes, config = _with_attention(config, card)
    for size in micro_batches:
        require(
            size <= config.batch.sequences,
            "batch.sequences",
            config.batch.sequences,
            f"{size} or more, for --micro_batches={','.join(map(str, micro_batches))}",
        )
    device, fraction, count = described_device(card), memory_fraction(), config.devices
    usable_bytes = int(
        (1 - DRIVER_FRACTION) * card.memory_bytes * fraction * tuning.DEVICE_FRACTION
    )
    factor = json.loads(CALIBRATION.read_text()).get(card_name, {}).get("factor")
    rows: dict[int, dict[str, Any]] = {}
    kernels_of: dict[int, list[Kernel]] = {}

    def need_bytes(size: int) -> float:
        """Compiles; a step that was squeezed into the memory counts as too large."""
        if size not in rows:
            logger.info(f"compiling for the {card.title}, micro-batch {size} ...")
            sized = dataclasses.replace(config, micro_batch=size // count)
            program = compile_for(sized, device)
            whole = dataclasses.replace(config, micro_batch=size)
            taken = {ONCE_AN_UPDATE: updates_per_micro_step(whole)}
            kernels_of[size] = kernels(program.as_text(), taken)
            row = _row(sized, card, program, kernels_of[size], factor or 1.0)
            squeezed = recomputes(program, usable_bytes)
            fits = row["total_bytes"] <= usable_bytes
            rows[size] = {"fits": fits, "recomputes": squeezed, **row}
        row = rows[size]
        return float("inf") if row["recomputes"] else row["total_bytes"]

    state, sequences = state_shapes(config), config.batch.sequences // count
    given = {config.micro_batch} - {0}
    for size in (*given, *micro_batches):
        multiple = f"a divisor of the micro-batch, {size}"
        require(size % count == 0, "devices", count, multiple)
        need_bytes(size)
    if not micro_batches:
        tuning.largest_first(
            sorted({*(count * n for n in tuning.micro_batches(sequences)), *given}),
            usable_bytes,
            need_bytes,
            fixed_bytes=tree_bytes(state),
            first=config.micro_batch or tuning.FIRST_PROBE,
        )
    fitting = [n for n, row in rows.items() if row["fits"] and not row["recomputes"]]
    shown = config.micro_batch or max(fitting, default=min(rows))
    tokens = shown // count * config.model.max_length
    if count > 1:
        notes.append(f"Of a micro-batch, each GPU takes a part of {count}.")
        notes.append(all_reduce_line(config, card) + ".")
    return {
        "card": card_name,
        "memory_bytes": card.memory_bytes,
        "memory_share": fraction,
        "usable_bytes": usable_bytes,
        "calibration": factor,
        "largest_micro_batch": max(fitting, default=0),
        "notes": notes + _notes(config, card, kernels_of[shown]),
        "micro_batches": dict(sorted(rows.items())),
        "traffic_micro_batch": shown,
        "traffic_bytes_per_token": {
            source: {name: value / tokens for name, value in passes.items()}
            for source, passes in by_source(kernels_of[shown], state.params).items()
        },
    }


def memory_fraction() -> float:
    """Returns the fraction of a card's memory that JAX takes, 0.75 unless it is set."""
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    return float(next(filter(None, map(os.environ.get, names)), 0.75))


def seconds(kernels: Iterable[Kernel], card: Card) -> float:
    """Returns the time that kernels should take: a roofline, not a measurement.

    Each is limited by its products or by its memory traffic, whichever takes longer;
    launching them is assumed to cost nothing. A float32 product takes twice as long as
    one of 16-bit numbers, as with TF32.
    """
    return sum(
        max(
            (kernel.flops + kernel.wide_flops) / (PRODUCT_FRACTION * card.peak),
            kernel.bytes / (COPY_FRACTION * card.bandwidth),
        )
        for kernel in kernels
    )


def _row(
    config: Config,
    card: Card,
    program: jax.stages.Compiled,
    kernels: list[Kernel],
    factor: float,
) -> dict[str, Any]:
    """Returns the numbers of a compiled micro-step, one GPU's part of a whole one.

    Returns:
      {"argument_bytes" (mostly the state), "temporary_bytes", "total_bytes",
      "traffic_bytes_per_token" (outside matrix products), "flops_over_formula", and
      SPEEDS, corrected by `factor`; None if products are not in 16 bits, to which the
      card's peak refers}
    """
    memory = program.memory_analysis()
    tokens = config.micro_batch * config.model.max_length
    flops = train_flops_per_token(config.model, config.objective.max_mask_rate)
    row = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "total_bytes": planned_bytes(program),
        "traffic_bytes_per_token": sum(k.bytes for k in kernels if not k.flops)
        / tokens,
        "flops_over_formula": sum(k.flops for k in kernels) / tokens / flops,
    }
    if _wide_fraction(kernels) > WIDE_FRACTION:
        return row | dict.fromkeys(SPEEDS)
    tokens_per_s = factor * tokens / seconds(kernels, card)
    rows = config.micro_batch * config.devices
    whole = dataclasses.replace(config, micro_batch=rows)
    return row | {
        "mfu": tokens_per_s * flops / card.peak,
        **on_card(whole, card, tokens_per_s, flops),
    }


def _wide_fraction(kernels: list[Kernel]) -> float:
    """Returns the fraction of the products' FLOPs in other than 16-bit numbers."""
    return sum(k.wide_flops for k in kernels) / sum(k.flops for k in kernels)


def _with_attention(config: Config, card: Card) -> tuple[list[str], Config]:
    """Returns notes, and the config with the attention that the card would choose."""
    if config.model.attention == "auto":
        cudnn = card.has_bfloat16 and tuning.would_use_cudnn(config)
        name = "cudnn" if cudnn else "xla"
        note = f"model.attention=auto is decided on the card; this is {name}'s."
        return [note], tuning.with_attention(config, name)
    require(
        config.model.attention != "cudnn" or card.has_bfloat16,
        "model.attention",
        config.model.attention,
        f"'xla' on the {card.title}: cuDNN's needs compute capability 8.0, the card "
        "has {}.{}".format(*card.compute_capability),
    )
    return [], config


def _notes(config: Config, card: Card, kernels: list[Kernel]) -> list[str]:
    """Returns sentences on what the numbers leave out."""
    notes, wide = [], _wide_fraction(kernels)
    if wide > WIDE_FRACTION:
        why = ""
        if config.model.dtype == "bfloat16" and not card.has_bfloat16:
            why = (
                f": the {card.title} has no bfloat16, XLA takes float32 for it; pass "
                "--config.model.dtype=float16"
            )
        notes.append(
            f"{wide:.0%} of the products' FLOPs are in float32{why}. The peak is one "
            "of 16-bit products: no speed is given."
        )
    if config.curriculum.lengths:
        notes.append(
            "The micro-step is that of whole blocks; curriculum.lengths="
            f"{config.curriculum.lengths} has shorter sequences, too."
        )
    return notes


def by_source(
    kernels: Iterable[Kernel], params: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
    """Returns {source: {pass: bytes}} of kernels without matrix products, most first.

    See `source` for the sources.
    """
    found: dict[str, dict[str, int]] = collections.defaultdict(
        lambda: dict.fromkeys(PASSES, 0)
    )
    for kernel in kernels:
        if not kernel.flops:
            where, when = source(kernel.op_name, params)
            found[where][when] += kernel.bytes
    return dict(sorted(found.items(), key=lambda item: -sum(item[1].values())))


def source(op_name: str, params: Mapping[str, Any]) -> tuple[str, str]:
    """Returns a kernel's module and pass, from the scopes that JAX traced it in.

    The module is for example "layers/attention": the first two names on the way to its
    parameters in `params`, all layers together. "layers" is what lies between their
    modules, the sums of the residual. "head" is the model's own work after its last
    module, "loss" what is differentiated outside the model, and "optimizer" all the
    rest: accumulation, clipping, the update, masking's few bytes.
    """
    if "jvp(" not in op_name:
        return "optimizer", "update"
    when = "backward" if "transpose(" in op_name else "forward"
    names: list[str] = []
    tree = params
    for scope in op_name.split("/"):
        if isinstance(tree, Mapping) and isinstance(tree.get(scope), Mapping):
            names.append(re.sub(r"_\d+$", "", scope))
            tree = tree[scope]
    if not names:
        return "head" if "MaskedLM" in op_name else "loss", when
    return "/".join(names[:2]), when


def description(card: Card) -> str:
    """Returns XLA's description of the card, a GpuTargetConfigProto as text."""
    core = card.architecture
    major, minor = card.compute_capability
    shared_bytes = core.shared_memory_kib << 10
    # From compute capability 8 on the system keeps 1 KiB of a block's.
    shared_of_block_bytes = shared_bytes - (1024 if major >= 8 else 0)
    # The limits of a block are the same for all of `cards.ARCHITECTURES`. The versions
    # are the oldest that the extras cuda12 and cuda13 may bring.
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: {card.cores} fpus_per_core: {core.fpus}
  threads_per_core_limit: {core.threads}
  shared_memory_per_core: {shared_bytes}
  shared_memory_per_block_optin: {shared_of_block_bytes}
  l2_cache_size: {int(card.l2_mib * 2**20)}
  device_memory_size: {card.memory_bytes}
  memory_bandwidth: {int(card.bandwidth)}
  clock_rate_ghz: {card.clock_ghz}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA" device_description_str: "{card.title}"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
"""


def described_device(card: Card) -> jax.Device:
    """Returns a device that can be compiled for, and nothing else.

    Raises:
      UserError: JAX has not loaded its CUDA plugin. It is not installed, or there is no
        driver and JAX_PLATFORMS is not "cpu", as `cramjax plan` sets it.
    """
    try:
        topology = topologies.get_topology_desc(
            "", "cuda", target_config=description(card), topology="1x1x1"
        )
    except NotImplementedError as error:  # JAX raises it for a plugin not loaded
        raise UserError(
            f"compiling for the {card.title} needs JAX's CUDA plugin, not a GPU: "
            'pip install -e ".[cuda12]" (or cuda13)'
        ) from error
    return topology.devices[0]


def compile_for(config: Config, device: jax.Device) -> jax.stages.Compiled:
    """Returns the training micro-step on whole blocks, compiled for the device."""
    step = train_step.build(config, train_step.make_mesh([device]))
    untuned: dict[str, Any] = {"xla_gpu_autotune_level": 0}  # tuning would run kernels
    return step.lowered().compile(compiler_options=untuned)
