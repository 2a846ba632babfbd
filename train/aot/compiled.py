"""What a compiled program says of itself: its memory, and what its devices tell one another.

Collectives are read off the optimised HLO text. Bytes are those that a collective works on, on each
device and for one execution, whatever algorithm moves them: of an all-gather the array that comes
out; of a reduce-scatter the array that goes in; of an all-reduce, an all-to-all or a
collective-permute the array itself; of what goes from one TPU slice to another the part of the
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
      arguments: of the arrays it is given, as they lie in memory.
      temporary: what it needs besides at its peak, outputs that replace no argument among it.
      program: of its machine code.
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
      kind: one of KINDS, with ' between slices' behind it where the data centre's network carries
        it from one TPU slice to another.
      bytes: on each device, of one execution; see the module.
      count: executions in one run of the program.
      depth: of JAX's loops (scan, while, fori) around it.
      known: whether the trip counts of all loops around it are; one that is not counts as 1.
    """

    kind: str
    bytes: int
    count: int
    depth: int
    known: bool = True


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of one kind at one depth of loops; bytes of all executions together."""

    kind: str
    depth: int
    count: int
    bytes: int
    known: bool


def memory(compiled: jax.stages.Compiled) -> Memory:
    """Returns the memory of a compiled program on each of its devices.

    The peak is the one that XLA holds against the device's memory: arrays that it keeps in a TPU's
    on-chip memory count in it. (The analysis' size of all temporary arrays may exceed the memory of
    a device that the program fits.)

    Args:
      compiled: the program.
    """
    analysis: Any = compiled.memory_analysis()
    arguments = analysis.argument_size_in_bytes
    return Memory(
        arguments=arguments,
        temporary=max(analysis.peak_memory_in_bytes - arguments, 0),
        program=analysis.generated_code_size_in_bytes,
    )


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a program, in the order of its text.

    A collective inside a loop counts as often as the loop runs. The start and end of an
    asynchronous one, and the fusions that carry it on in between, count once. A reduce-scatter that
    XLA:TPU writes as a fused all-reduce counts as what it is. A conditional counts as the branch
    that communicates most.

    Args:
      text: optimised HLO, of `jax.stages.Compiled.as_text`.
    """
    module, entry = parse(text)
    return list(_Walk(module).computation(entry, _Place(times=1, depth=0, known=True), set()))


def summarise(found: Sequence[Collective]) -> list[Traffic]:
    """Returns the collectives by depth and kind, outermost first.

    Args:
      found: of `collectives`.
    """
    groups: dict[tuple[int, str], list[Collective]] = collections.defaultdict(list)
    for one in found:
        groups[one.depth, one.kind].append(one)
    return [
        Traffic(
            kind=kind,
            depth=depth,
            count=sum(one.count for one in group),
            bytes=sum(one.count * one.bytes for one in group),
            known=all(one.known for one in group),
        )
        for (depth, kind), group in sorted(groups.items())
    ]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a computation stands: how often it runs, and inside how many of JAX's loops."""

    times: int
    depth: int
    known: bool
    fused: str | None = None  # the fusion's computation


@dataclasses.dataclass(frozen=True)
class _Walk:
    """The way through a program, from its entry into whatever is called."""

    module: dict[str, Computation]

    def computation(self, name: str, place: _Place, seen: set[Any]) -> Iterator[Collective]:
        """The collectives of a computation; `seen` are the fused ones of the code around it."""
        computation = self.module[name]
        for instruction in computation.instructions.values():
            yield from self._instruction(instruction, computation, place, seen)

    def _instruction(
        self, one: Instruction, around: Computation, place: _Place, seen: set[Any]
    ) -> Iterator[Collective]:
        kind = _kind(one, place.fused)
        if kind is not None:
            # An asynchronous all-gather stands in each fusion that it overlaps with.
            channel = one.find(r"channel_id=(\d+)")
            part = (kind, channel, one.find(r'chain_id="(\d+)"'))
            if place.fused is None or channel is None or part not in seen:
                seen.add(part)
                size = _moved(one, around)
                yield Collective(kind, size, place.times, place.depth, place.known)
        elif one.opcode == "while":
            (body,) = one.called("body")
            yield from self.computation(body, self._inside(one, around, place), set())
        elif one.opcode == "conditional":
            names = ("branch_computations", "true_computation", "false_computation")
            branches = [list(self.computation(b, place, set())) for b in one.called(*names)]
            yield from max(branches, key=lambda branch: sum(c.count * c.bytes for c in branch))
        elif one.opcode == "fusion":
            for name in one.called("calls"):
                yield from self.computation(name, dataclasses.replace(place, fused=name), seen)
        elif one.opcode in ("call", "async-start", "custom-call"):
            for name in one.called("calls", "to_apply", "called_computations"):
                yield from self.computation(name, place, seen)

    def _inside(self, loop: Instruction, around: Computation, place: _Place) -> _Place:
        """Where a loop's body stands."""
        trips = _trips(self.module, loop, around)
        path = loop.find(r'op_name="([^"]*)"')
        # Loops that XLA makes, as for a product in pieces, belong to the place around them; of
        # those of JAX, one that runs once has no loop left and still stands in the others' paths.
        if path is None:
            depth = place.depth + 1
        elif path.endswith("/while"):
            depth = path.count("/while/body/") + 1
        else:
            depth = place.depth
        known = place.known and trips is not None
        return _Place(place.times * (1 if trips is None else trips), depth, known)


def _kind(one: Instruction, fused: str | None) -> str | None:
    """The kind of a collective; None for any other instruction, and for the ends of async ones."""
    if one.opcode == "send":
        transfer = one.find(r'_xla_megascale_transfer_type="(\w+)"')
        return transfer and transfer.lower().replace("_", "-") + _BETWEEN_SLICES
    kind = one.opcode.removesuffix("-start")
    if kind == "all-reduce" and fused is not None and "all-reduce-scatter" in fused:
        return "reduce-scatter"
    return kind if kind in KINDS else None


def _moved(one: Instruction, around: Computation) -> int:
    """The bytes of a collective, by the module's convention."""
    operands = [size_in_bytes(around.instructions[name].shape) for name in one.operands]
    if one.opcode == "send":
        return operands[0]  # the other is a token
    if one.opcode == "all-gather":
        return size_in_bytes(one.shape)
    if one.opcode == "all-gather-start":  # its shape is that of the operands and the results
        return size_in_bytes(one.shape) - sum(operands)
    return sum(operands)


def _trips(module: dict[str, Computation], loop: Instruction, around: Computation) -> int | None:
    """How often a loop runs; None where the text does not tell.

    Where XLA does not note it, the loop is one of JAX's, which counts up by 1 from a constant for
    as long as the counter is less than another: read off the condition and the initial values.
    """
    noted = loop.find(r'"known_trip_count":\{"n":"(\d+)"')
    if noted is not None:
        return int(noted)
    (condition,) = (module[name] for name in loop.called("condition"))
    compare, names = condition.instructions[condition.root], {}
    within = condition
    if compare.opcode == "fusion":
        (within,) = (module[name] for name in compare.called("calls"))
        parameters = [one for one in within.instructions.values() if one.opcode == "parameter"]
        names = {one.name: compare.operands[int(one.inside)] for one in parameters}
        compare = within.instructions[within.root]
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    initial = around.instructions[loop.operands[0]]

    def value(name: str, in_loop: bool) -> int | None:
        """A constant of the condition, or what the loop starts with."""
        one = within.instructions[name]
        if name in names:
            one = condition.instructions[names[name]]
        if one.opcode == "constant":
            return None if in_loop else int(one.inside)
        index = one.find(r"index=(\d+)")
        if one.opcode != "get-tuple-element" or index is None or initial.opcode != "tuple":
            return None
        return constant(around, initial.operands[int(index)])

    counter, bound = compare.operands
    start, stop = value(counter, in_loop=True), value(bound, in_loop=False)
    return None if start is None or stop is None else max(stop - start, 0)
