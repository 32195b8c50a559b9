"""What the device decides: the attention that is faster, the micro-batch that fits."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cramjax.data.kinds import SPECIAL_TOKENS
from cramjax.data.packing import token_dtype
from cramjax.describe import state_bytes
from cramjax.device import host_memory, micro_batch
from cramjax.device.cards import of_device
from cramjax.device.compilation import MicroStep, lowered, planned_bytes, recomputes
from cramjax.errors import UserError, is_out_of_memory, one_line
from cramjax.schema import Config
from cramjax.training import train_step

PROBE_SEQUENCES = 64  # at which implementations of attention are compared
MEASURED_S = 2.0  # of steps, at least
# Of what may be used. The rest is for what JAX keeps beside the program, and on a CPU,
# where a program that is too large is killed without a word, for everybody else.
SHARE_OF_DEVICE, SHARE_OF_HOST = 0.95, 0.5


def is_asked_for(config: Config) -> bool:
    """Returns whether the config leaves something to the device."""
    return config.micro_batch == 0 or config.model.attention == "auto"


def as_recorded(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns the config with what an earlier session has chosen.

    Args:
      config: as given.
      values: {"section.key": value} of the config.json that session left.
    """
    rows, attention = values.get("micro_batch"), values.get("model.attention")
    if config.micro_batch == 0 and rows in range(config.batch.sequences + 1):
        config = dataclasses.replace(config, micro_batch=rows)
    if config.model.attention == "auto" and isinstance(attention, str):
        config = _with_attention(config, attention)
    return config


def choose(config: Config, say: Callable[[str], None] = print) -> Config:
    """Returns the config with a micro-batch and an attention that this device is for.

    Raises:
      UserError: not even one sequence fits.
    """
    if config.model.attention == "auto":
        config = _with_attention(config, _attention(config, say))
    if config.micro_batch == 0:
        sequences = _micro_batch(config, say)
        config = dataclasses.replace(config, micro_batch=sequences)
    return config


def _with_attention(config: Config, name: str) -> Config:
    model = dataclasses.replace(config.model, attention=name)
    return dataclasses.replace(config, model=model)


def _attention(config: Config, say: Callable[[str], None]) -> str:
    """Returns the implementation that trains faster."""
    names = attentions(config)
    if len(names) == 1:
        say(f"attention: {names[0]}, there is no other one for this model and device")
        return names[0]
    rows = config.micro_batch or min(PROBE_SEQUENCES, config.batch.sequences)
    tokens_per_s = _tokens_per_s(config, names, rows, say)
    while not tokens_per_s and not config.micro_batch and rows > 1:
        rows //= 2
        tokens_per_s = _tokens_per_s(config, names, rows, say)
    if not tokens_per_s:
        raise UserError(
            f"config.micro_batch is {config.micro_batch}: no attention runs with "
            f"{rows} sequences, see above; pass fewer, or a smaller model"
        )
    best = max(tokens_per_s, key=tokens_per_s.__getitem__)
    speeds = ", ".join(f"{name} {x:,.0f}" for name, x in tokens_per_s.items())
    say(f"attention: {best} (tokens/s with {rows} sequences: {speeds})")
    return best


def _tokens_per_s(
    config: Config, names: Sequence[str], rows: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Measures those attentions that run with so many sequences."""
    found = {}
    for name in names:
        trial = dataclasses.replace(_with_attention(config, name), micro_batch=rows)
        try:
            seconds = seconds_per_step(trial, MicroStep.of(trial))
        except RuntimeError as error:  # of XLA: no memory, or no cuDNN
            say(
                f"attention: {name} does not run here with {rows} sequences "
                f"({one_line(error)})"
            )
            continue
        found[name] = rows * config.model.max_length / seconds
    return found


def attentions(config: Config) -> list[str]:
    """Returns the values of `model.attention` to choose from on this device."""
    return ["xla", *(["cudnn"] if has_cudnn() and would_use_cudnn(config) else [])]


def has_cudnn() -> bool:
    """Returns whether cuDNN's attention runs here: compute capability 8.0 and above."""
    capability = getattr(jax.devices()[0], "compute_capability", "0").split(".")[0]
    return (
        jax.default_backend() == "gpu"
        and capability.isdigit()  # AMD's are not
        and int(capability) >= 8
    )


def would_use_cudnn(config: Config) -> bool:
    """Returns whether training can be, and would be, another one with cuDNN's.

    With a mask or with dropout the model does not call it.
    """
    try:
        _with_attention(config, "cudnn")
    except UserError:
        return False
    objective = config.objective
    masked = objective.separate_documents or objective.dropout
    return config.model.mixing == "attention" and not masked


def _micro_batch(config: Config, say: Callable[[str], None]) -> int:
    """Returns the largest number of sequences whose step fits, as seen by running."""
    limit = memory_limit_bytes()
    needs: dict[int, float] = {}

    def need_bytes(rows: int) -> float:
        say(f"micro-batch: compiling for {rows} sequences ...")
        trial = dataclasses.replace(config, micro_batch=rows)
        needs[rows] = needed_bytes(trial, MicroStep.of(trial), recomputing=False)
        return needs[rows]

    fitting = micro_batch.largest_first(
        micro_batch.sizes(config.batch.sequences),
        limit,
        need_bytes,
        fixed_bytes=sum(state_bytes(config).values()),
    )
    for rows in fitting:
        trial = dataclasses.replace(config, micro_batch=rows)
        try:
            seconds_per_step(trial, MicroStep.of(trial), at_least_s=0.0)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            say(f"micro-batch: {rows} sequences do not fit after all")
            continue
        sizes = ""
        if rows in needs:
            sizes = f" ({needs[rows] / 1e9:.1f} of {limit / 1e9:.1f} GB)"
        say(f"micro-batch: {rows} sequences, the most that fit{sizes}")
        return rows
    raise UserError(
        f"config.micro_batch is 0: not one sequence fits in the {limit / 1e9:.1f} GB "
        f"of {jax.devices()[0].device_kind}: pass a smaller model"
    )


def memory_limit_bytes() -> int:
    """Returns how much a program may need on this device."""
    there, share = _memory()
    return int(share * there)


def device_bytes() -> int:
    """Returns how much memory programs on this device have."""
    return _memory()[0]


def _memory() -> tuple[int, float]:
    """Returns the bytes there are, and the share of them to use."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"], SHARE_OF_DEVICE
    if card := of_device(device.device_kind):
        return card.memory_bytes, SHARE_OF_DEVICE
    return host_memory.limit_bytes(), SHARE_OF_HOST


def needed_bytes(config: Config, step: MicroStep, recomputing: bool = True) -> float:
    """Returns what the compiled micro-step and its state take.

    inf: it cannot be compiled, or, unless `recomputing`, only by computing
    something twice.
    """
    shape = (config.micro_batch, config.model.max_length)
    try:
        program = lowered(config, step.function, shape).compile()
    except jax.errors.JaxRuntimeError as error:  # autotuning runs parts of it
        if not is_out_of_memory(error):
            raise
        return float("inf")
    if not recomputing and recomputes(program, memory_limit_bytes()):
        return float("inf")
    return planned_bytes(program)


def seconds_per_step(
    config: Config, step: MicroStep, at_least_s: float = MEASURED_S
) -> float:
    """Returns the median time of a micro-step, on random tokens from a fresh state."""
    make = functools.partial(train_step.init_state, config)
    sharding = train_step.replicated(train_step.make_mesh())
    state = jax.jit(make, out_shardings=sharding)()
    vocabulary = config.model.vocab_size
    tokens_BxL = np.random.default_rng(0).integers(
        len(SPECIAL_TOKENS),
        vocabulary,
        (config.micro_batch, config.model.max_length),
        token_dtype(vocabulary),
    )
    seconds: list[float] = []
    while len(seconds) < 4 or sum(seconds[1:]) < at_least_s:  # the first one compiles
        start = time.monotonic()
        state, metrics = step.function(state, tokens_BxL, np.float32(0))
        jax.block_until_ready((state, metrics))
        seconds.append(time.monotonic() - start)
    return float(np.median(seconds[1:]))
