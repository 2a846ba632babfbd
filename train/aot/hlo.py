"""The text of a compiled program: optimised HLO, parsed."""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation: `name = shape opcode(content), attributes`."""

    name: str
    shape: str
    opcode: str
    content: str  # the operands; of a constant its value, of a parameter its number
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.content)

    def called(self, *attributes: str) -> list[str]:
        """The computations that the attributes name, one or several in braces."""
        pattern = rf"\b(?:{'|'.join(attributes)})=(?:%([\w.\-]+)|\{{([^}}]*)\}})"
        found = re.findall(pattern, self.attributes)
        return [
            name for single, listed in found for name in re.findall(r"[\w.\-]+", single or listed)
        ]

    def find(self, pattern: str) -> str | None:
        """The group of a pattern in the attributes."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None


@dataclasses.dataclass
class Computation:
    """A function of a module; `root` is the name of the instruction that it returns."""

    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""


def constant(computation: Computation, name: str) -> int | None:
    """The value of an instruction, if it is a whole number or a copy of one."""
    source = computation.instructions[name]
    while source.opcode in ("copy", "bitcast", "convert") and source.operands:
        source = computation.instructions[source.operands[0]]

    is_number = source.opcode == "constant" and source.content.isdigit()
    return int(source.content) if is_number else None


def size_in_bytes(shape: str) -> int:
    """The bytes of an array's or a tuple's shape, without the padding of its layout."""
    # The digits in a dtype's name are its bits, as in bf16 and f8e4m3fn; only pred has none.
    total = 0
    for dtype, sizes in re.findall(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]", shape):
        bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
        total += math.ceil(bits * math.prod(int(n) for n in sizes.split(",") if n) / 8)

    return total


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and which is its entry."""
    module, entry, current = {}, "", None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            current = Computation(header[2])
            module[current.name] = current
            entry = current.name if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            _read(current, line)

    if not entry:
        raise ValueError("the text is no HLO module: it has no ENTRY computation")
    return module, entry


def _read(computation: Computation, line: str) -> None:
    """Adds a line's instruction to the computation, if it has one."""
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if match is None:
        return

    # A tuple's shape holds spaces, and an operand may hold parentheses: each is cut off where its
    # own parenthesis closes.
    rest = line[match.end() :]
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ") - 1
    shape, rest = rest[: end + 1], rest[end + 1 :].lstrip()

    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    computation.instructions[match[2]] = Instruction(
        name=match[2],
        shape=shape,
        opcode=opcode,
        content=rest[:end],
        attributes=rest[end + 1 :],
    )
    if match[1]:
        computation.root = match[2]


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()

    raise ValueError(f"unbalanced parentheses: {text[:80]}")
