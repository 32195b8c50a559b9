"""What a compiled GPU program does, read from its text: kernels, bytes, products.

The text is HLO, as `jax.stages.Compiled.as_text()` gives it: computations of one
instruction a line, where a fusion is one kernel. Bytes are what a kernel's arguments
and results hold, which is what it moves if it reads or writes each of them once.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%(\S+) .*\{$")
_LINE = re.compile(r"^\s*(?:ROOT )?%(\S+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_NAME = re.compile(r"%([\w.\-]+)")

# Take no time: they say where something is, or are done by the time the program starts.
_FREE = {"parameter", "get-tuple-element", "bitcast", "tuple", "constant", "after-all"}
# Read of their first operand only what they return.
_PARTIAL = {"slice", "dynamic-slice", "gather"}

# Products of the size [.., L, M, K] in cuDNN's attention: forward two; backward four,
# and the scores once more, which it did not keep.
_ATTENTION_PRODUCTS = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}


class Array(NamedTuple):
    """Type and shape of one result."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size; types of less than a byte count as one."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.dims) * max(int(bits.group()) // 8 if bits else 1, 1)


class Instruction(NamedTuple):
    """One line.

    Attributes:
      name: unique in its computation.
      opcode: "fusion", "dot", "while", ...
      arrays: its results, one unless it returns a tuple.
      operands: names of other lines.
      attributes: the rest of the line.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def bytes(self) -> int:
        """Size of all results together."""
        return sum(array.bytes for array in self.arrays)

    @property
    def op_name(self) -> str:
        """The JAX scopes it was traced in, with the primitive's name last; or ""."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    def called(self, *roles: str) -> list[str]:
        """Returns the computations that the line names as `role=%name` or a list."""
        names = []
        for role in roles:
            found = re.search(rf"\b{role}=(%[\w.\-]+|\{{[^}}]*\}})", self.attributes)
            names += _NAME.findall(found.group(1)) if found else []
        return names


class Program(NamedTuple):
    """Computations by name, each {name of a line: line}; and the one that is run."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


class Kernel(NamedTuple):
    """What one line of the program costs, all its launches together.

    Attributes:
      op_name: where it comes from, see `Instruction.op_name`; if it has none, the
        commonest of its parts, or that of what it reads.
      launches: times it runs.
      bytes: read and written.
      flops: of the matrix products in it.
      wide_flops: of these, products of other than 16-bit numbers.
    """

    op_name: str
    launches: int
    bytes: int
    flops: int
    wide_flops: int


def parse(text: str) -> Program:
    """Returns the program that an HLO text describes."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, lines = "", {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = computations[head.group(2)] = {}
            entry = head.group(2) if head.group(1) else entry
        elif found := _LINE.match(line):
            name, shape, opcode, rest = found.groups()
            operands, _, attributes = rest.partition(")")
            if opcode == "parameter":  # its number, which stands where operands do
                attributes = operands
            lines[name] = Instruction(
                name,
                opcode,
                tuple(
                    Array(dtype, tuple(int(n) for n in dims.split(",") if n))
                    for dtype, dims in _ARRAY.findall(shape)
                ),
                tuple(_NAME.findall(operands)),
                attributes,
            )
    return Program(computations, entry)


def kernels(program: Program) -> list[Kernel]:
    """Returns the kernels that one run of the program launches.

    A loop's count as often as it goes round, of a conditional's branches those that
    move the most.

    Raises:
      ValueError: the compiler does not know how often a loop goes round.
    """
    return list(_walk(program, program.entry, 1))


def _walk(program: Program, computation: str, times: int) -> Iterator[Kernel]:
    lines = program.computations[computation]
    for line in lines.values():
        if line.opcode in _FREE:
            continue
        if line.opcode == "while":
            (body,) = line.called("body")
            yield from _walk(program, body, times * _trips(line))
        elif line.opcode == "conditional":
            roles = ("true_computation", "false_computation", "branch_computations")
            branches = [list(_walk(program, b, times)) for b in line.called(*roles)]
            yield from max(branches, key=lambda found: sum(k.bytes for k in found))
        elif line.opcode == "call":
            (callee,) = line.called("to_apply")
            yield from _walk(program, callee, times)
        else:
            yield _kernel(program, lines, line, times)


def _trips(loop: Instruction) -> int:
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if not found:
        raise ValueError(f"the loop {loop.name} goes round an unknown number of times")
    return int(found.group(1))


def _kernel(
    program: Program, lines: dict[str, Instruction], line: Instruction, times: int
) -> Kernel:
    fused = program.computations[line.called("calls")[0]] if _is_fusion(line) else {}
    read = sum(
        _bytes_read(lines[operand], number, fused)
        for number, operand in enumerate(line.operands)
    )
    products = list(_products(program, lines, line))
    flops = sum(flops for _, flops in products)
    wide = sum(flops for array, flops in products if array.dtype not in ("bf16", "f16"))
    return Kernel(
        _origin(line, fused, lines),
        times,
        times * (read + line.bytes),
        times * flops,
        times * wide,
    )


def _is_fusion(line: Instruction) -> bool:
    return line.opcode == "fusion"


def _bytes_read(
    operand: Instruction, number: int, fused: dict[str, Instruction]
) -> int:
    """Returns what a kernel reads of an operand: all, or the parts it picks."""
    for line in fused.values():
        if line.opcode == "parameter" and line.attributes == str(number):
            return _bytes_used(line, fused)
    return operand.bytes


def _bytes_used(line: Instruction, fused: dict[str, Instruction]) -> int:
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


def _origin(
    line: Instruction, fused: dict[str, Instruction], lines: dict[str, Instruction]
) -> str:
    """Returns its op_name, or the commonest inside, or the one of what it reads.

    One without scopes says nothing.
    """
    inside = collections.Counter(p.op_name for p in fused.values() if "/" in p.op_name)
    names = [line.op_name, *(name for name, _ in inside.most_common(1))]
    names += [lines[operand].op_name for operand in line.operands]
    return next((name for name in names if "/" in name), "")


def _products(
    program: Program, lines: dict[str, Instruction], line: Instruction
) -> Iterator[tuple[Array, int]]:
    """Yields (left factor, FLOPs) of the matrix products in a line.

    They are dots, in fusions and fusions within, cuBLAS's products, cuDNN's attention.
    """
    if _is_fusion(line):
        fused = program.computations[line.called("calls")[0]]
        for part in fused.values():
            yield from _products(program, fused, part)
        return
    target = re.search(r'custom_call_target="([^"]*)"', line.attributes)
    name = target.group(1) if target else ""
    if line.opcode == "dot" or name.startswith("__cublas"):
        left = lines[line.operands[0]].arrays[0]
        summed = re.search(
            r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d",]*)', line.attributes
        )
        axes = re.findall(r"\d+", summed.group(1)) if summed else []
        terms = math.prod(left.dims[int(axis)] for axis in axes)
        yield left, 2 * math.prod(line.arrays[0].dims) * terms
    elif name in _ATTENTION_PRODUCTS:
        query_BxLxHxK = lines[line.operands[0]].arrays[0]
        scores = re.search(
            r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]',
            line.attributes,
        )
        sizes = [int(n) for n in re.findall(r"\d+", scores.group(1))]
        products = _ATTENTION_PRODUCTS[name] * 2 * math.prod(sizes)
        yield query_BxLxHxK, products * query_BxLxHxK.dims[-1]
