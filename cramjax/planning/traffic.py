"""Where a compiled micro-step's memory traffic comes from: modules of the model, ..."""

import collections
import re
from collections.abc import Iterable, Mapping
from typing import Any

from cramjax.planning.compiled import Kernel

PASSES = ("forward", "backward", "update")


def by_source(
    kernels: Iterable[Kernel], params: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
    """Returns {source: {pass: bytes}} of kernels without matrix products, most first.

    Args:
      kernels: of the micro-step.
      params: its parameters, whose names are those of the modules.
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
    """Returns a kernel's module and pass, told by the scopes that JAX traced it in.

    The module is "layers/attention", say: the first two names on the way to its
    parameters, the layers taken together; "layers" is what is between their modules,
    the sums of the residual. "head" is the model's own work after its last module,
    "loss" what is differentiated outside the model, and "optimizer" all the rest:
    accumulation, clipping, the update, masking's few bytes.
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
