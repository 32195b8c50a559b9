"""The one place that compiles a training step, measures its memory and times it."""

import concurrent.futures
import dataclasses
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from cramjax.config import Config

logger = logging.getLogger(__name__)

MIN_COMPILE_S = 0.5  # a program that compiles faster is not worth a file
MEASURED_S = 2.0  # of steps, at least
FIRST_TOKEN = 8  # of made-up batches: above the ids of all special tokens


def use_cache(folder: str) -> None:
    """Keeps compiled programs in a folder, and on a GPU what autotuning has found.

    JAX tells programs apart by all that they depend on: itself, the device, the flags.
    A folder that JAX has from elsewhere, for example JAX_COMPILATION_CACHE_DIR, wins.

    Args:
      folder: `config.compilation_cache`, "" for none.
    """
    if not folder or jax.config.jax_compilation_cache_dir:
        return
    try:
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # no home folder, or no right to write
        logger.warning(f"config.compilation_cache is {folder!r}: not used ({error})")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)


@dataclasses.dataclass(frozen=True)
class MicroStep:
    """A jitted micro-step, how it is fed, and what compiling it has cost.

    Training makes it (`train_step.build`); the device package only compiles it.

    Attributes:
      config: the run's.
      function: (state, tokens_BxL, progress) to (state, metrics); donates the state.
      init_state: returns a fresh state when it is traced.
      sharding: of the state.
      token_dtype: of the batches.
      begun: `time.monotonic()` when this session began to prepare for training.
      shapes: of the batches that it is compiled for.
      compile_s: how long that took.
      needed_bytes: what the largest of these programs takes, with its arguments.
    """

    config: Config
    function: Callable[..., tuple[Any, dict[str, jax.Array]]]
    init_state: Callable[[], Any]
    sharding: jax.sharding.Sharding
    token_dtype: str
    begun: float = dataclasses.field(default_factory=time.monotonic)
    shapes: frozenset[tuple[int, int]] = frozenset()
    compile_s: float = 0.0
    needed_bytes: int = 0

    @property
    def block_shape(self) -> tuple[int, int]:
        """Of a micro-batch of whole blocks."""
        return self.config.micro_batch, self.config.model.max_length

    @property
    def tokens(self) -> int:
        """Of a micro-batch of whole blocks."""
        rows, length = self.block_shape
        return rows * length

    def lowered(self) -> jax.stages.Lowered:
        """Returns the micro-step on whole blocks, traced but not compiled."""
        state = abstract(self.init_state, self.sharding)
        tokens_BxL = jax.ShapeDtypeStruct(self.block_shape, self.token_dtype)
        return self.function.lower(
            state, tokens_BxL, jax.ShapeDtypeStruct((), np.float32)
        )

    def compiled(self) -> "MicroStep":
        """Returns the same micro-step, compiled for the batches that come first.

        With a curriculum nothing is compiled: training may resume at any length.
        """
        if self.config.curriculum.lengths:
            return self
        start = time.monotonic()
        program = self.lowered().compile()
        return dataclasses.replace(
            self,
            shapes=frozenset([self.block_shape]),
            compile_s=time.monotonic() - start,
            needed_bytes=planned_bytes(program),
        )

    def fresh_state(self) -> Any:
        """Returns the state that training starts from, on the device."""
        return jax.jit(self.init_state, out_shardings=self.sharding)()

    def random_batches(self, count: int, seed: int = 0) -> list[np.ndarray]:
        """Returns whole blocks of tokens_BxL, as frequent as in text (Zipf's law).

        No special token is among them.
        """
        ids = np.arange(FIRST_TOKEN, self.config.model.vocab_size)
        cumulated_V = np.cumsum(1 / np.arange(1, len(ids) + 1))
        generator = np.random.default_rng(seed)
        return [
            ids[
                np.searchsorted(
                    cumulated_V, generator.random(self.block_shape) * cumulated_V[-1]
                )
            ].astype(self.token_dtype)
            for _ in range(count)
        ]


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
    """Returns the memory a program takes with its arguments, as the compiler plans."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )


def recomputes(program: jax.stages.Compiled, limit_bytes: float) -> bool:
    """Returns whether anything is computed twice because memory was short.

    XLA does that by itself as soon as a program would take more than about 0.77 of a
    GPU's memory (seen with jax 0.12), and names what it repeats after what it repeats.
    It repeats some cheap things in any case.

    Args:
      program: the compiled program.
      limit_bytes: what it may take; memory is not short below half of it.
    """
    if planned_bytes(program) < limit_bytes / 2:
        return False
    return bool(re.search(r"^ *(ROOT )?%?[\w.-]+\.remat", program.as_text(), re.M))


def seconds_per_step(step: MicroStep, at_least_s: float = MEASURED_S) -> float:
    """Returns the median time of a micro-step, from a fresh state on random tokens."""
    [tokens_BxL] = step.random_batches(1)
    return seconds_per_call(
        lambda state: step.function(state, tokens_BxL, np.float32(0))[0],
        step.fresh_state(),
        at_least_s,
    )


def seconds_per_call(
    function: Callable[[Any], Any], state: Any, at_least_s: float = 0.0
) -> float:
    """Returns the median time of at least three calls that each update a state.

    Args:
      function: returns the next state; its first call compiles and does not count.
      state: what the first call is given.
      at_least_s: of all calls that count.
    """
    seconds: list[float] = []
    while len(seconds) < 4 or sum(seconds[1:]) < at_least_s:
        start = time.monotonic()
        state = jax.block_until_ready(function(state))
        seconds.append(time.monotonic() - start)
    return median(seconds[1:])


class Ahead:
    """Compiles the micro-step in a thread; a context manager that waits for it.

    Attributes:
      begun: see `MicroStep`.
    """

    def __init__(self, begun: float | None = None):
        """Compiles nothing yet."""
        self.begun = time.monotonic() if begun is None else begun
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._step: concurrent.futures.Future[MicroStep] | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown()

    def start(self, step: MicroStep) -> None:
        """Begins to compile, unless it has begun already."""
        if self._step is None:
            step = dataclasses.replace(step, begun=self.begun)
            self._step = self._pool.submit(step.compiled)

    def result(self) -> MicroStep:
        """Returns the step when it is compiled."""
        return self._step.result()
