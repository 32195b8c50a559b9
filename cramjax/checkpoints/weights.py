"""Parameters in a file of their own, without the training state: weights.safetensors.

A parameter's name is its path in the tree, joined by dots: "layers_0.ffn.gate.kernel".
"""

from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from cramjax import files
from cramjax.checkpoints.convert import load_tensors

WEIGHTS = "weights.safetensors"


def write(path: Path, params: Any) -> None:
    """Writes a tree of parameters as float32, atomically."""
    from safetensors.numpy import save

    flat = traverse_util.flatten_dict(params, sep=".")
    arrays = {name: np.asarray(array, np.float32) for name, array in flat.items()}
    files.write_bytes(path, save(arrays))


def read(path: Path) -> dict[str, Any]:
    """Returns the tree of parameters.

    Raises:
      UserError: the file is missing or damaged.
    """
    return traverse_util.unflatten_dict(load_tensors(path), sep=".")
