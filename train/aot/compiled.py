"""What a compiled program needs and communicates: its memory and its collectives.

Collectives are read off the optimised HLO text. Bytes are those that a collective works on, on each
device and for one execution, whatever algorithm moves them: of an all-gather the array that comes
out; of a reduce-scatter the array that goes in; of an all-reduce, an all-to-all or a
collective-permute the array itself; of a transfer from one TPU slice to another the part of the
array that a device sends.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from train.aot.hlo import Computation, Instruction, constant, parse, size_in_bytes

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_BETWEEN_SLICES = " between slices"


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory of a program on each device, in bytes.

    Attributes:
      arguments: its arguments, as they lie in memory.
      temporary: what it needs in addition at its peak, including outputs that replace no argument.
      program: its machine code.
    """

    arguments: int
    temporary: int
    program: int

    @property
    def total(self) -> int:
        """All of it, at the peak."""
        return self.arguments + self.temporary + self.program


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a program.

    Attributes:
      kind: one of KINDS, followed by ' between slices' if the data centre's network carries it from
        one TPU slice to another.
      bytes: on each device, of one execution; see the module.
      count: executions in one run of the program.
      depth: number of JAX's loops (scan, while, fori) around it.
      exact: whether the count is; a loop whose trip count the text does not say counts as 1.
    """

    kind: str
    bytes: int
    count: int
    depth: int
    exact: bool = True


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of one kind at one depth of loops; bytes of all executions together."""

    kind: str
    depth: int
    count: int
    bytes: int
    exact: bool


def memory(compiled: jax.stages.Compiled) -> Memory:
    """Returns the memory of a compiled program on each of its devices."""
    analysis: Any = compiled.memory_analysis()
    arguments = analysis.argument_size_in_bytes
    return Memory(
        arguments=arguments,
        # The peak is the one that XLA holds against the device's memory; it includes arrays in a
        # TPU's on-chip memory. The analysis' size of all temporary arrays may exceed the memory of
        # a device that the program fits.
        temporary=max(analysis.peak_memory_in_bytes - arguments, 0),
        program=analysis.generated_code_size_in_bytes,
    )


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a program, in the order of its text.

    A collective inside a loop counts as often as the loop runs. The start and end of an
    asynchronous one, and the fusions that carry it between them, count once. A reduce-scatter that
    XLA:TPU writes as a fused all-reduce counts as a reduce-scatter. A conditional counts as the
    branch that communicates most.

    Args:
      text: optimised HLO, of `jax.stages.Compiled.as_text`.
    """
    module, entry = parse(text)
    return list(_Walk(module).computation(entry, _Place(times=1, depth=0, exact=True), set()))


def summarise(found: Sequence[Collective]) -> list[Traffic]:
    """Returns the collectives by depth and kind, outermost first."""
    groups: dict[tuple[int, str], list[Collective]] = collections.defaultdict(list)
    for collective in found:
        groups[collective.depth, collective.kind].append(collective)

    return [
        Traffic(
            kind=kind,
            depth=depth,
            count=sum(c.count for c in group),
            bytes=sum(c.count * c.bytes for c in group),
            exact=all(c.exact for c in group),
        )
        for (depth, kind), group in sorted(groups.items())
    ]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a computation stands: how often it runs, and inside how many of JAX's loops."""

    times: int
    depth: int
    exact: bool
    fusion: str | None = None  # the name of the fused computation, inside of one


@dataclasses.dataclass(frozen=True)
class _Walk:
    """A walk through a program, from its entry into everything that is called."""

    module: dict[str, Computation]

    def computation(self, name: str, place: _Place, seen: set[Any]) -> Iterator[Collective]:
        """The collectives of a computation; `seen` are the fused ones of the code around it."""
        computation = self.module[name]
        for instruction in computation.instructions.values():
            kind = _kind(instruction, place.fusion)
            if kind is None:
                yield from self._called(instruction, computation, place, seen)
            elif not _is_repeated(instruction, kind, place, seen):
                size = _bytes_moved(instruction, computation)
                yield Collective(kind, size, place.times, place.depth, place.exact)

    def _called(
        self, caller: Instruction, around: Computation, place: _Place, seen: set[Any]
    ) -> Iterator[Collective]:
        """The collectives of what an instruction calls."""
        if caller.opcode == "while":
            # Another loop is another execution, even of collectives that were seen before.
            (body,) = caller.called("body")
            yield from self.computation(body, self._inside(caller, around, place), set())

        elif caller.opcode == "conditional":
            names = ("branch_computations", "true_computation", "false_computation")
            branches = [list(self.computation(b, place, set())) for b in caller.called(*names)]
            yield from max(branches, key=lambda branch: sum(c.count * c.bytes for c in branch))

        elif caller.opcode == "fusion":
            for name in caller.called("calls"):
                yield from self.computation(name, dataclasses.replace(place, fusion=name), seen)

        elif caller.opcode in ("call", "async-start", "custom-call"):
            for name in caller.called("calls", "to_apply", "called_computations"):
                yield from self.computation(name, place, seen)

    def _inside(self, loop: Instruction, around: Computation, place: _Place) -> _Place:
        """Where a loop's body stands."""
        trips = _trip_count(self.module, loop, around)
        path = loop.find(r'op_name="([^"]*)"')

        # Loops that XLA makes, as for a product in pieces, belong to the place around them. Of
        # JAX's own, a loop that runs once is gone, but still stands in the paths of the others.
        if path is None:
            depth = place.depth + 1
        elif path.endswith("/while"):
            depth = path.count("/while/body/") + 1
        else:
            depth = place.depth

        times = place.times * (1 if trips is None else trips)
        return _Place(times, depth, exact=place.exact and trips is not None)


def _kind(instruction: Instruction, fusion: str | None) -> str | None:
    """The kind of a collective; None for any other instruction, and for the ends of async ones."""
    if instruction.opcode == "send":
        transfer = instruction.find(r'_xla_megascale_transfer_type="(\w+)"')
        return transfer and transfer.lower().replace("_", "-") + _BETWEEN_SLICES

    kind = instruction.opcode.removesuffix("-start")

    # XLA:TPU writes a reduce-scatter as an all-reduce and a slice, fused under this name.
    if kind == "all-reduce" and fusion is not None and "all-reduce-scatter" in fusion:
        return "reduce-scatter"

    return kind if kind in KINDS else None


def _is_repeated(instruction: Instruction, kind: str, place: _Place, seen: set[Any]) -> bool:
    """Whether a fused collective was seen before; adds it to those seen."""
    # An asynchronous all-gather stands in each fusion that it overlaps with.
    channel = instruction.find(r"channel_id=(\d+)")
    part = (kind, channel, instruction.find(r'chain_id="(\d+)"'))
    is_repeated = place.fusion is not None and channel is not None and part in seen

    seen.add(part)
    return is_repeated


def _bytes_moved(instruction: Instruction, around: Computation) -> int:
    """The bytes of a collective, by the module's convention."""
    operands = [size_in_bytes(around.instructions[name].shape) for name in instruction.operands]

    # The other operand of a send is a token.
    if instruction.opcode == "send":
        return operands[0]
    if instruction.opcode == "all-gather":
        return size_in_bytes(instruction.shape)

    # The shape of a start is a tuple of the operands' and the results'.
    if instruction.opcode == "all-gather-start":
        return size_in_bytes(instruction.shape) - sum(operands)

    return sum(operands)


def _trip_count(
    module: dict[str, Computation], loop: Instruction, around: Computation
) -> int | None:
    """How often a loop runs; None where the text does not say."""
    noted = loop.find(r'"known_trip_count":\{"n":"(\d+)"')
    if noted is not None:
        return int(noted)

    # Where XLA does not note it, the loop is one of JAX's, which counts up by 1 from a constant for
    # as long as the counter is less than another: both stand in the condition and the initial
    # values.
    (condition,) = (module[name] for name in loop.called("condition"))
    compare, within = condition.instructions[condition.root], condition

    # XLA:CPU wraps the comparison into a fusion: its parameters are the fusion's operands.
    passed = {}
    if compare.opcode == "fusion":
        (within,) = (module[name] for name in compare.called("calls"))
        parameters = [i for i in within.instructions.values() if i.opcode == "parameter"]
        passed = {i.name: compare.operands[int(i.content)] for i in parameters}
        compare = within.instructions[within.root]

    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None

    initial = around.instructions[loop.operands[0]]

    def value(name: str, in_loop: bool) -> int | None:
        """A constant of the condition, or what the loop starts with."""
        operand = within.instructions[name]
        if name in passed:
            operand = condition.instructions[passed[name]]
        if operand.opcode == "constant":
            return None if in_loop else int(operand.content)

        index = operand.find(r"index=(\d+)")
        if operand.opcode != "get-tuple-element" or index is None or initial.opcode != "tuple":
            return None
        return constant(around, initial.operands[int(index)])

    counter, bound = compare.operands
    start, stop = value(counter, in_loop=True), value(bound, in_loop=False)
    return None if start is None or stop is None else max(stop - start, 0)
