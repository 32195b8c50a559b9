"""Parameters in a file of their own, without the training state: weights.safetensors.

A parameter's name is its path in the tree, joined by dots: "layers_0.ffn.gate.kernel".
A finished run has such a file in its workdir, and one for each average that is on:
weights-ema.safetensors and weights-lawa.safetensors.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from cramjax.checkpoints.convert import load_tensors, write_tensors
from cramjax.config import Config
from cramjax.training import train_step
from cramjax.training.pretrain import read_checkpoint

WEIGHTS = "weights.safetensors"
PRETRAINED = "pretrained"  # the weights themselves, beside their averages


def write(path: Path, params: Any) -> None:
    """Writes a tree of parameters as float32, atomically."""
    flat = traverse_util.flatten_dict(params, sep=".")
    arrays = {name: np.asarray(array, np.float32) for name, array in flat.items()}
    write_tensors(path, arrays)


def read(path: Path) -> dict[str, Any]:
    """Returns the tree of parameters.

    Raises:
      UserError: the file is missing or damaged.
    """
    return traverse_util.unflatten_dict(load_tensors(path), sep=".")


def names(config: Config) -> tuple[str, ...]:
    """Returns the names of a run's weights: "pretrained" and its averages."""
    return PRETRAINED, *config.averaging.names


def write_run(named_params: Mapping[str, Any], workdir: Path) -> None:
    """Writes the files of a finished run."""
    for name, params in named_params.items():
        write(_path(workdir, name), params)


def is_written(config: Config, workdir: Path) -> bool:
    """Returns whether the workdir has all files of its run."""
    return all(_path(workdir, name).exists() for name in names(config))


def read_run(
    config: Config, workdir: Path, wanted: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns a finished run's parameters by name, on the device; all by default.

    Without a file, as in a workdir of an earlier version, they are read from the
    checkpoint.

    Raises:
      UserError: a file is damaged, or neither it nor a checkpoint is there.
    """
    paths = {name: _path(workdir, name) for name in wanted or names(config)}
    if not all(path.exists() for path in paths.values()):
        return read_checkpoint(config, workdir)
    found = {name: read(path) for name, path in paths.items()}
    return jax.device_put(found, train_step.replicated(train_step.make_mesh()))


def _path(workdir: Path, name: str) -> Path:
    return workdir / (WEIGHTS if name == PRETRAINED else f"weights-{name}.safetensors")
