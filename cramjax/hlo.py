"""What a compiled GPU program does, read from its text: kernels, bytes, products.

The text is HLO, as `jax.stages.Compiled.as_text()` returns it: computations of one
instruction per line, where a fusion is one kernel. A kernel's bytes are those of its
arguments and results, assuming that it reads or writes each of them once.
"""

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%(\S+) .*\{$")
_LINE = re.compile(r"^\s*(?:ROOT )?%(\S+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_NAME = re.compile(r"%([\w.\-]+)")

# These take no time: they name a place in memory, or happen before the program runs.
_FREE = {"parameter", "get-tuple-element", "bitcast", "tuple", "constant", "after-all"}
# These read only those parts of their first operand that they return.
_PARTIAL = {"slice", "dynamic-slice", "gather"}

# Products of the size [.., L, M, K] in cuDNN's attention: two forward; four backward,
# where it also computes the scores again.
_ATTENTION_PRODUCTS = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}


class Kernel(NamedTuple):
    """What one line of the program costs, all its launches together."""

    op_name: str  # the JAX scopes and the primitive that it comes from
    bytes: float  # read and written
    flops: float  # of the matrix products in it
    wide_flops: float  # of these, products of other than 16-bit numbers


class Array(NamedTuple):
    """Type and shape of one result."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size; an element of a narrower type counts as one byte."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.dims) * max(int(bits.group()) // 8 if bits else 1, 1)


class _Line(NamedTuple):
    """One instruction."""

    name: str  # unique in its computation
    opcode: str  # "fusion", "dot", "while", ...
    arrays: tuple[Array, ...]  # its results, one unless it returns a tuple
    operands: tuple[str, ...]  # names of other lines
    attributes: str  # the rest of the line; of a parameter, its number

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @property
    def op_name(self) -> str:
        """The JAX scopes it was traced in, then the primitive's name; or ""."""
        return self.found(r'op_name="([^"]*)"')

    def found(self, pattern: str) -> str:
        """Returns the pattern's first group in the attributes, or ""."""
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else ""

    def called(self, role: str) -> list[str]:
        """Returns the computations that the line names as `role=%name` or a list."""
        return _NAME.findall(self.found(rf"\b{role}=(%[\w.\-]+|\{{[^}}]*\}})"))


_Lines = dict[str, _Line]  # of a computation, by their names


def kernels(text: str, taken: Mapping[str, float] | None = None) -> list[Kernel]:
    """Returns the kernels that one run of an HLO program launches.

    A kernel in a loop counts as often as the loop runs.

    Args:
      text: the program.
      taken: {JAX scope: the fraction of runs in which a conditional in it takes the
        branch that moves the most bytes}; 1 in other scopes.

    Raises:
      ValueError: the compiler does not know how often a loop runs.
    """
    computations, entry = _parse(text)
    return list(_walk(computations, entry, 1, taken or {}))


def _parse(text: str) -> tuple[dict[str, _Lines], str]:
    """Returns the computations by name, and the name of the one that is run."""
    computations: dict[str, _Lines] = {}
    entry, lines = "", {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = computations[head.group(2)] = {}
            entry = head.group(2) if head.group(1) else entry
        elif found := _LINE.match(line):
            name, shape, opcode, rest = found.groups()
            operands, _, attributes = rest.partition(")")
            lines[name] = _Line(
                name,
                opcode,
                tuple(
                    Array(dtype, tuple(int(n) for n in dims.split(",") if n))
                    for dtype, dims in _ARRAY.findall(shape)
                ),
                tuple(_NAME.findall(operands)),
                operands if opcode == "parameter" else attributes,
            )
    return computations, entry


def _walk(
    computations: dict[str, _Lines],
    computation: str,
    times: float,
    taken: Mapping[str, float],
) -> Iterator[Kernel]:
    lines = computations[computation]
    for line in lines.values():
        if line.opcode in _FREE:
            continue
        if line.opcode == "while":
            count = line.found(r'"known_trip_count":\{"n":"(\d+)"')
            if not count:
                raise ValueError(
                    f"the loop {line.name} runs an unknown number of times"
                )
            (body,) = line.called("body")
            yield from _walk(computations, body, times * int(count), taken)
        elif line.opcode == "conditional":
            scopes = line.op_name.split("/")
            fraction = min((taken[name] for name in scopes if name in taken), default=1)
            branches = [
                list(_walk(computations, branch, times * fraction, taken))
                for role in ("true", "false", "branch")
                for branch in line.called(rf"{role}_computations?")
            ]
            yield from max(branches, key=lambda found: sum(k.bytes for k in found))
        elif line.opcode == "call":
            (callee,) = line.called("to_apply")
            yield from _walk(computations, callee, times, taken)
        else:
            yield _kernel(computations, lines, line, times)


def _kernel(
    computations: dict[str, _Lines], lines: _Lines, line: _Line, times: float
) -> Kernel:
    fused = _fused(computations, line)
    read = sum(
        _bytes_read(lines[operand], number, fused)
        for number, operand in enumerate(line.operands)
    )
    products = list(_products(computations, lines, line))
    return Kernel(
        _origin(line, fused, lines),
        times * (read + line.bytes),
        times * sum(flops for _, flops in products),
        times * sum(flops for dtype, flops in products if dtype not in ("bf16", "f16")),
    )


def _fused(computations: dict[str, _Lines], line: _Line) -> _Lines:
    """Returns the lines inside a fusion, {} of anything else."""
    return computations[line.called("calls")[0]] if line.opcode == "fusion" else {}


def _bytes_read(operand: _Line, number: int, fused: _Lines) -> int:
    """Returns what a kernel reads of an operand: all, or the parts it picks."""
    for line in fused.values():
        if line.opcode == "parameter" and line.attributes == str(number):
            return _bytes_used(line, fused)
    return operand.bytes


def _bytes_used(line: _Line, fused: _Lines) -> int:
    users = [user for user in fused.values() if line.name in user.operands]
    used = 0
    for user in users:
        if user.opcode == "bitcast":
            used += _bytes_used(user, fused)
        elif user.opcode in _PARTIAL and line.name not in user.operands[1:]:
            used += user.bytes
        else:
            return line.bytes
    return min(used, line.bytes) if users else line.bytes


def _origin(line: _Line, fused: _Lines, lines: _Lines) -> str:
    """Returns the line's op_name, or the commonest inside it, or that of an operand.

    A name without scopes does not count.
    """
    inside = collections.Counter(p.op_name for p in fused.values() if "/" in p.op_name)
    names = [line.op_name, *(name for name, _ in inside.most_common(1))]
    names += [lines[operand].op_name for operand in line.operands]
    return next((name for name in names if "/" in name), "")


def _products(
    computations: dict[str, _Lines], lines: _Lines, line: _Line
) -> Iterator[tuple[str, int]]:
    """Yields (dtype of the left factor, FLOPs) of the matrix products in a line.

    They are dots, also in nested fusions, cuBLAS's products, and cuDNN's attention.
    """
    fused = _fused(computations, line)
    for part in fused.values():
        yield from _products(computations, fused, part)
    target = line.found(r'custom_call_target="([^"]*)"')
    if line.opcode == "dot" or target.startswith("__cublas"):
        left = lines[line.operands[0]].arrays[0]
        summed = line.found(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d",]*)')
        terms = math.prod(left.dims[int(axis)] for axis in re.findall(r"\d+", summed))
        yield left.dtype, 2 * math.prod(line.arrays[0].dims) * terms
    elif target in _ATTENTION_PRODUCTS:
        query_BxLxHxK = lines[line.operands[0]].arrays[0]
        scores = line.found(
            r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]'
        )
        sizes = [int(n) for n in re.findall(r"\d+", scores)]
        products = _ATTENTION_PRODUCTS[target] * 2 * math.prod(sizes)
        yield query_BxLxHxK.dtype, products * query_BxLxHxK.dims[-1]
