"""What is left to the device: the faster attention, the largest micro-batch."""

import bisect
import dataclasses
import logging
import math
from collections.abc import Callable, Sequence

import jax

from cramjax.config import Config
from cramjax.device import host_memory
from cramjax.device.cards import of_device
from cramjax.device.compile import (
    MicroStep,
    abstract,
    planned_bytes,
    recomputes,
    seconds_per_step,
    tree_bytes,
)
from cramjax.device.distributed import devices, from_first
from cramjax.errors import UserError, is_out_of_memory, one_line

logger = logging.getLogger(__name__)

Build = Callable[[Config], MicroStep]  # `train_step.build`

ATTENTIONS = ("xla", "cudnn")
PROBE_SEQUENCES = 64  # micro-batch at which implementations of attention are compared
FIRST_PROBE = 64  # micro-batch at which the search for the largest one begins
# How far a micro-batch may make an update larger than `batch.sequences`.
MAX_ROUNDING = 0.02
# Fraction of the memory that a step may take. The rest is for what JAX keeps beside the
# program; on a CPU, where the system kills a program that is too large, for others.
DEVICE_FRACTION, HOST_FRACTION = 0.95, 0.5


def is_asked_for(config: Config) -> bool:
    """Returns whether the config leaves a choice to the device."""
    return config.micro_batch == 0 or config.model.attention == "auto"


def choose(config: Config, build: Build) -> Config:
    """Returns the config with the devices' best attention and micro-batch.

    With several processes, each tries its device's part of the batch, and process 0's
    choice counts.

    Raises:
      UserError: not even one sequence fits.
    """
    if not is_asked_for(config):
        return config
    count = devices()
    batch = dataclasses.replace(config.batch, sequences=config.batch.sequences // count)
    part = dataclasses.replace(
        config, batch=batch, micro_batch=config.micro_batch // count
    )
    name, rows = config.model.attention, part.micro_batch
    if name == "auto":
        name = _attention(part, build)
        part = with_attention(part, name)
    rows = rows or _micro_batch(part, build)
    if count > 1:
        index, rows = from_first([ATTENTIONS.index(name), rows])
        name = ATTENTIONS[index]
    return dataclasses.replace(with_attention(config, name), micro_batch=rows * count)


def with_attention(config: Config, name: str) -> Config:
    """Returns the config with this `model.attention`.

    Raises:
      UserError: the model cannot have it.
    """
    model = dataclasses.replace(config.model, attention=name)
    return dataclasses.replace(config, model=model)


def attentions(config: Config) -> list[str]:
    """Returns the values of `model.attention` to choose from on this device."""
    return [*ATTENTIONS] if has_cudnn() and would_use_cudnn(config) else ["xla"]


def has_cudnn() -> bool:
    """Returns whether cuDNN's attention runs here: compute capability 8.0 and above."""
    device = jax.local_devices()[0]
    capability = getattr(device, "compute_capability", "0").split(".")[0]
    return (
        jax.default_backend() == "gpu"
        and capability.isdigit()  # AMD's are not
        and int(capability) >= 8
    )


def would_use_cudnn(config: Config) -> bool:
    """Returns whether the model can call cuDNN's attention, and would if asked to.

    It does not with a mask or with dropout.
    """
    try:
        with_attention(config, "cudnn")
    except UserError:
        return False
    objective = config.objective
    masked = objective.separate_documents or objective.dropout
    return config.model.mixing == "attention" and not masked


def _attention(config: Config, build: Build) -> str:
    """Returns the attention that trains faster."""
    names = attentions(config)
    if len(names) == 1:
        logger.info(f"attention: {names[0]}, the only one for this model and device")
        return names[0]
    rows = config.micro_batch or min(PROBE_SEQUENCES, config.batch.sequences)
    while not (tokens_per_s := _tokens_per_s(config, names, rows, build)):
        if config.micro_batch or rows == 1:
            raise UserError(
                f"config.micro_batch is {config.micro_batch}: no attention runs with "
                f"{rows} sequences, see above; pass fewer, or a smaller model"
            )
        rows //= 2
    best = max(tokens_per_s, key=tokens_per_s.__getitem__)
    speeds = ", ".join(f"{name} {x:,.0f}" for name, x in tokens_per_s.items())
    logger.info(f"attention: {best} (tokens/s with {rows} sequences: {speeds})")
    return best


def _tokens_per_s(
    config: Config, names: Sequence[str], rows: int, build: Build
) -> dict[str, float]:
    """Measures the attentions that run with a micro-batch of `rows`."""
    found = {}
    for name in names:
        trial = dataclasses.replace(with_attention(config, name), micro_batch=rows)
        try:
            seconds = seconds_per_step(build(trial))
        except RuntimeError as error:  # of XLA: no memory, or no cuDNN
            logger.info(
                f"attention: {name} does not run here with {rows} sequences "
                f"({one_line(error)})"
            )
            continue
        found[name] = rows * config.model.max_length / seconds
    return found


def _micro_batch(config: Config, build: Build) -> int:
    """Returns the largest number of sequences that fit when the step is run."""
    limit = memory_limit_bytes()
    gigabytes = f"{limit / 1e9:.1f} GB"

    def step_of(rows: int) -> MicroStep:
        return build(dataclasses.replace(config, micro_batch=rows))

    def need_bytes(rows: int) -> float:
        logger.info(f"micro-batch: compiling for {rows} sequences ...")
        return needed_bytes(step_of(rows))

    one = step_of(1)
    fitting = largest_first(
        micro_batches(config.batch.sequences),
        limit,
        need_bytes,
        fixed_bytes=tree_bytes(abstract(one.init_state, one.sharding)),
    )
    for rows in fitting:
        try:
            seconds_per_step(step_of(rows), at_least_s=0.0)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.info(f"micro-batch: {rows} sequences do not fit after all")
            continue
        logger.info(f"micro-batch: {rows} sequences, the most that fit in {gigabytes}")
        return rows
    raise UserError(
        f"config.micro_batch is 0: not one sequence fits in the {gigabytes} of "
        f"{jax.local_devices()[0].device_kind}: pass a smaller model"
    )


def needed_bytes(step: MicroStep) -> float:
    """Returns the memory of the compiled micro-step and its state.

    It is inf if the step cannot be compiled without computing something twice.
    """
    try:
        program = step.lowered().compile()
    except jax.errors.JaxRuntimeError as error:  # autotuning runs parts of it
        if not is_out_of_memory(error):
            raise
        return math.inf
    squeezed = recomputes(program, memory_limit_bytes())
    return math.inf if squeezed else planned_bytes(program)


def memory_limit_bytes() -> int:
    """Returns how much memory a program may take on this device."""
    size, fraction = _memory()
    return int(fraction * size)


def device_bytes() -> int:
    """Returns the memory of this device, for all its programs."""
    return _memory()[0]


def _memory() -> tuple[int, float]:
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"], DEVICE_FRACTION
    if card := of_device(device.device_kind):
        return card.memory_bytes, DEVICE_FRACTION
    return host_memory.limit_bytes(), HOST_FRACTION


def micro_batches(sequences: int) -> list[int]:
    """Returns the micro-batches for a batch of `sequences`, in ascending order.

    They are powers of two and 1.5 times these that divide the batch, at least nearly.
    """
    powers = [2**n for n in range(sequences.bit_length())]
    candidates = {sequences, *powers, *(3 * power // 2 for power in powers[1:])}
    return sorted(
        rows
        for rows in candidates
        if rows <= sequences
        and -(-sequences // rows) * rows <= (1 + MAX_ROUNDING) * sequences
    )


def largest_first(
    ladder: Sequence[int],
    limit_bytes: float,
    need_bytes: Callable[[int], float],
    *,
    fixed_bytes: float,
    first: int = FIRST_PROBE,
) -> list[int]:
    """Returns the micro-batches that fit, largest first.

    Every call of `need_bytes` compiles. To make few of them, each answer predicts the
    next probe: the need rises about linearly from `fixed_bytes`.

    Args:
      ladder: micro-batches, ascending.
      limit_bytes: of memory.
      need_bytes: of a micro-batch, rising; inf if too large by an unknown amount.
      fixed_bytes: about what the smallest micro-batch needs.
      first: where to begin.
    """
    low, high = 0, len(ladder)  # ladder[:low] fit, ladder[high:] do not
    index = max(bisect.bisect_right(ladder, first) - 1, 0)
    while low < high:
        need = need_bytes(ladder[index])
        if need <= limit_bytes:
            low = index + 1
        else:
            high = index
        if math.isinf(need):
            index = (low + high) // 2
            continue
        per_sequence = max(need - fixed_bytes, 1) / ladder[index]
        room = (limit_bytes - fixed_bytes) / per_sequence
        index = bisect.bisect_right(ladder, room) - 1
        index = min(max(index, low), high - 1)
    return list(reversed(ladder[:low]))
