"""Compiles the training step, measures its memory and times it."""

import dataclasses
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np

from cramjax.config import Config

logger = logging.getLogger(__name__)

MIN_COMPILE_S = 0.5  # a program that compiles faster is not worth a file
MEASURED_S = 2.0  # of steps, at least
FIRST_TOKEN = 8  # of made-up batches: above the ids of all special tokens


def use_cache(folder: str) -> None:
    """Keeps compiled programs in a folder, and on a GPU the results of autotuning.

    Each is found again only by the same JAX on the same device with the same flags. A
    folder that JAX already has, for example from JAX_COMPILATION_CACHE_DIR, takes
    precedence; "" means no folder.
    """
    if not folder or jax.config.jax_compilation_cache_dir:
        return
    try:
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # not writable, or no home folder
        logger.warning(f"config.compilation_cache is {folder!r}: not used ({error})")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)


class Requests(NamedTuple):
    """What a process requests; all of them agree on the maximum of each number."""

    progress: float = 0.0  # of the budget; only process 0's clock counts
    stop: float = 0.0  # the number of a signal
    save: float = 0.0  # 0 or 1
    validate: float = 0.0  # 0 or 1


@dataclasses.dataclass(frozen=True)
class MicroStep:
    """A jitted micro-step and how to feed it; made by `train_step.build`.

    Attributes:
      function: (state, tokens_BxL, progress) to (state, metrics); donates the state.
      init_state: returns the initial state when it is traced.
      sharding: of the state, except what `spread` changes.
      token_dtype: of the batches.
      initial_params: of the state at the beginning; None = random ones.
      spread: returns the state for several devices, from one as `init_state` makes it.
      gather: the reverse, for checkpoints: any number of devices goes on from these.
      compile_s: how long `compile_ahead` took; 0 if it compiled nothing.
      needed_bytes: memory of the compiled program and its arguments.
    """

    config: Config
    function: Callable[..., tuple[Any, dict[str, jax.Array]]]
    init_state: Callable[[], Any]
    sharding: jax.sharding.Sharding
    token_dtype: str
    initial_params: Any = None
    spread: Callable[[Any], Any] = lambda state: state
    gather: Callable[[Any], Any] = lambda state: state
    compile_s: float = 0.0
    needed_bytes: int = 0

    @property
    def block_shape(self) -> tuple[int, int]:
        """The shape of a micro-batch of whole blocks."""
        return self.config.micro_batch, self.config.model.max_length

    def lowered(self) -> jax.stages.Lowered:
        """Returns the micro-step on whole blocks, traced but not compiled."""
        state = abstract(self.init_state, self.sharding)
        tokens_BxL = jax.ShapeDtypeStruct(self.block_shape, self.token_dtype)
        shape = ()  # of `progress`
        if (devices := self.sharding.mesh.size) > 1:
            state = jax.eval_shape(self.spread, state)
            shape = (devices, len(Requests._fields))
        return self.function.lower(
            state, tokens_BxL, jax.ShapeDtypeStruct(shape, np.float32)
        )

    def inputs(self, tokens_BxL: np.ndarray, requests: Requests) -> tuple[Any, Any]:
        """Returns the arguments after the state: all processes' rows and requests."""
        mesh = self.sharding.mesh
        if mesh.size == 1:
            return tokens_BxL, np.float32(requests.progress)
        split = jax.NamedSharding(mesh, jax.P("data"))
        requests_NxR = np.tile(np.float32(requests), (mesh.local_mesh.size, 1))
        return tuple(
            jax.make_array_from_process_local_data(split, x)
            for x in (tokens_BxL, requests_NxR)
        )

    def compile_ahead(self) -> "MicroStep":
        """Returns the same micro-step, compiled for whole blocks.

        With a curriculum nothing is compiled: training may resume at any length.
        """
        if self.config.curriculum.lengths:
            return self
        start = time.monotonic()
        # JAX keeps the executable: calling `function` with these shapes reuses it.
        needed_bytes = planned_bytes(self.lowered().compile())
        compile_s = time.monotonic() - start
        return dataclasses.replace(self, compile_s=compile_s, needed_bytes=needed_bytes)

    def fresh_state(self) -> Any:
        """Returns the initial state, on the device."""
        state = jax.jit(self.init_state, out_shardings=self.sharding)()
        if self.initial_params is not None:
            # Copied, because a step takes over the memory of its state.
            params = jax.device_put(self.initial_params, self.sharding, may_alias=False)
            state = state.replace(params=params)
        return self.spread(state)

    def random_batches(self, count: int, seed: int = 0) -> list[np.ndarray]:
        """Returns whole blocks of tokens_BxL, distributed as in text (Zipf's law).

        They contain no special tokens.
        """
        ids = np.arange(FIRST_TOKEN, self.config.model.vocab_size)
        cumulative_V = np.cumsum(1 / np.arange(1, len(ids) + 1))
        random = np.random.default_rng(seed).random((count, *self.block_shape))
        ranks = np.searchsorted(cumulative_V, random * cumulative_V[-1])
        return list(ids[ranks].astype(self.token_dtype))


def abstract(make: Callable[[], Any], sharding: jax.sharding.Sharding) -> Any:
    """Returns shapes, dtypes and `sharding` of what `make()` would return."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(make),
    )


def tree_bytes(tree: Any) -> int:
    """Returns the size of all arrays, or shapes of arrays, in a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def planned_bytes(program: jax.stages.Compiled) -> int:
    """Returns the memory that the compiler plans for a program and its arguments."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )


def recomputes(program: jax.stages.Compiled, limit_bytes: float) -> bool:
    """Returns whether a program computes anything twice for lack of memory.

    XLA does so by itself when a program would take more than about 0.77 of a GPU's
    memory (seen with jax 0.12), and marks the repeated instructions in their names. It
    repeats some cheap instructions in any case, so programs that need less than half of
    the limit do not count.
    """
    if planned_bytes(program) < limit_bytes / 2:
        return False
    return bool(re.search(r"^ *(ROOT )?%?[\w.-]+\.remat", program.as_text(), re.M))


def seconds_per_step(step: MicroStep, at_least_s: float = MEASURED_S) -> float:
    """Returns the median time of a micro-step, from the initial state on."""
    [tokens_BxL] = step.random_batches(1)
    return seconds_per_call(
        lambda state: step.function(state, tokens_BxL, np.float32(0))[0],
        step.fresh_state(),
        at_least_s,
    )


def seconds_per_call(
    function: Callable[[Any], Any], state: Any, at_least_s: float = 0.0
) -> float:
    """Returns the median time of at least three calls, each of which returns a state.

    The first call, which compiles, does not count; the others take `at_least_s` or more
    in total.
    """
    seconds: list[float] = []
    while len(seconds) < 4 or sum(seconds[1:]) < at_least_s:
        start = time.monotonic()
        state = jax.block_until_ready(function(state))
        seconds.append(time.monotonic() - start)
    return median(seconds[1:])
