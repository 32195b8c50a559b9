"""Compiling the training step: beforehand, and once for all runs."""

import concurrent.futures
import dataclasses
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np

from cramjax.data.packing import token_dtype
from cramjax.schema import Config
from cramjax.training import train_step
from cramjax.training.checkpoint import abstract

MIN_COMPILE_S = 0.5  # what compiles faster is not worth a file


def use_cache(folder: str) -> None:
    """Keeps compiled programs in a folder, and on a GPU what autotuning has found.

    JAX tells programs apart by all that they depend on: itself, the device, the flags.
    A folder that JAX was told of otherwise, JAX_COMPILATION_CACHE_DIR say, comes first.

    Args:
      folder: `config.compilation_cache`, "" for none.
    """
    if not folder or jax.config.jax_compilation_cache_dir:
        return
    try:
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # of a home there is none, or not to write
        print(f"config.compilation_cache is {folder!r}: not used ({error})")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)


@dataclasses.dataclass(frozen=True)
class MicroStep:
    """The jitted micro-step, and what it has cost so far.

    Attributes:
      function: see `train_step.make_micro_step`.
      begun: `time.monotonic()` when getting ready began.
      shapes: of the batches it is compiled for.
      compile_s: what that took.
      needed_bytes: what the largest of these programs and its arguments take.
    """

    function: Callable
    begun: float
    shapes: frozenset[tuple[int, ...]] = frozenset()
    compile_s: float = 0.0
    needed_bytes: int = 0

    @classmethod
    def of(cls, config: Config, begun: float | None = None) -> "MicroStep":
        """Returns one that compiles when it is called; `begun` is now if left out."""
        begun = time.monotonic() if begun is None else begun
        return cls(train_step.make_micro_step(config, train_step.make_mesh()), begun)

    def compiled(self, config: Config, shapes: Iterable[tuple[int, ...]]):
        """Returns the same one, compiled for batches of these shapes."""
        start = time.monotonic()
        programs = [lowered(config, self.function, shape).compile() for shape in shapes]
        return dataclasses.replace(
            self,
            shapes=frozenset(shapes),
            compile_s=time.monotonic() - start,
            needed_bytes=max(map(planned_bytes, programs), default=0),
        )


def lowered(
    config: Config,
    function: Callable,
    shape: tuple[int, ...],
    mesh: jax.sharding.Mesh | None = None,
):
    """Returns the micro-step for a batch's shape as a `jax.stages.Lowered`.

    Args:
      config: the step's.
      function: of `train_step.make_micro_step`.
      shape: of a batch.
      mesh: what `function` was made for; this machine's device if left out.
    """
    state = abstract(
        lambda: train_step.init_state(config),
        train_step.replicated(mesh or train_step.make_mesh()),
    )
    tokens_BxL = jax.ShapeDtypeStruct(shape, token_dtype(config.model.vocab_size))
    progress = jax.ShapeDtypeStruct((), np.float32)
    return function.lower(state, tokens_BxL, progress)


def planned_bytes(program: jax.stages.Compiled) -> int:
    """Returns the memory that a program and its arguments take, by the compiler."""
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
      program: what was compiled.
      limit_bytes: what it may take; memory is not short below half of it.
    """
    if planned_bytes(program) < limit_bytes / 2:
        return False
    return bool(re.search(r"^ *(ROOT )?%?[\w.-]+\.remat", program.as_text(), re.M))


class Ahead:
    """Compiles the micro-step in a thread; a context manager that waits for it.

    Attributes:
      begun: see `MicroStep`.
    """

    def __init__(self, begun: float | None = None):
        """Does nothing yet."""
        self.begun = time.monotonic() if begun is None else begun
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._step: concurrent.futures.Future[MicroStep] | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown()

    def start(self, config: Config) -> None:
        """Begins to compile, unless it has begun."""
        if self._step is None:
            step = MicroStep.of(config, self.begun)
            self._step = self._pool.submit(step.compiled, config, _shapes(config))

    def result(self) -> MicroStep:
        """Returns the step when it is compiled."""
        return self._step.result()


def _shapes(config: Config) -> list[tuple[int, ...]]:
    """Returns the first batch's shape; of a curriculum none, it may be anywhere."""
    if config.curriculum.lengths:
        return []
    return [(config.micro_batch, config.model.max_length)]
