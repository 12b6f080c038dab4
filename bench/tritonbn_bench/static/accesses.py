"""Accesses to global memory in what the compiler made, by the tensor that they belong to.

That is found by following an address back, through everything that computed it, to the kernel's
pointer arguments: in the PTX for NVIDIA, in the LLVM text for AMD, whose assembly has too few
registers to tell. A register of the PTX may be written at several places; all of them count.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LOAD = "load"
STORE = "store"
ATOMIC = "atomic"
# an access without cache modifiers, beside others that have some
PLAIN = "plain"
# kind, register of the address, bytes a thread, whether a float atomic, cache modifiers
Found = tuple[str, str, int, bool, str]
Hints = tuple[tuple[str, str], ...]


@dataclass(frozen=True, order=True)
class Access:
    """Instructions of one kind on global memory: how many, and bytes that each moves per thread.

    `argument` is the kernel's name of the tensor, several joined by `|` where the code selects.
    """

    kind: str
    argument: str
    width: int
    count: int
    is_float_atomic: bool = False


class Dataflow:
    """Which pointer arguments flow into which register."""

    def __init__(self) -> None:
        self._sources: dict[str, set[str]] = defaultdict(set)
        self._roots: dict[str, str] = {}

    def define(self, register: str, sources: Iterable[str]) -> None:
        """`register` is computed, here or elsewhere too, from `sources`."""
        self._sources[register].update(sources)

    def root(self, register: str, argument: str) -> None:
        """`register` holds the pointer that the kernel calls `argument`."""
        self._roots[register] = argument

    def origin(self, register: str) -> str:
        """Names of the arguments behind `register`, sorted and joined by `|`."""
        seen, waiting, found = {register}, [register], set()
        while waiting:
            current = waiting.pop()
            if current in self._roots:
                found.add(self._roots[current])
            fresh = self._sources.get(current, set()) - seen
            seen |= fresh
            waiting.extend(fresh)
        return "|".join(sorted(found))


_PTX_STATEMENT = re.compile(r"^(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+(.*)$", re.DOTALL)
_PTX_REGISTER = re.compile(r"%[a-z]+\d+")
_PTX_PARAMETER = re.compile(r"\[\s*\w*_param_(\d+)\s*\]")
_PTX_POINTER = re.compile(r"\.param \.u64 \.ptr \.global[^,)]*?_param_(\d+)")
_PTX_POLICY = re.compile(r"createpolicy\.fractional\.(L2::\w+)\S*\s+(%rd\d+)")
_PTX_KINDS = {"ld": LOAD, "st": STORE, "atom": ATOMIC, "red": ATOMIC}
_PTX_CACHES = {"ca", "cg", "cs", "cv", "lu", "nc", "wb", "wt"}


def _ptx_statements(text: str) -> Iterator[tuple[list[str], str]]:
    """(parts of the opcode, operands) of every instruction; directives and comments are skipped."""
    # the sections after the code hold debug information
    body = text.split("\t.section", 1)[0]
    for line in body.splitlines():
        for statement in line.split("//", 1)[0].split(";"):
            found = _PTX_STATEMENT.match(statement.strip())
            if found is not None:
                yield found.group(1).split("."), found.group(2)


def ptx_fp64(text: str) -> int:
    """Instructions that compute in, or convert from or to, double precision."""
    return sum("f64" in parts for parts, _ in _ptx_statements(text))


def ptx_loose_releases(text: str) -> int:
    """Releasing atomics with a store to global memory before them and no `bar.sync` in between.

    One thread performs the atomic: it releases its own stores, those of the program's other threads
    only behind a block barrier. Read in the order of the text, in which stores precede the atomic
    that publishes them.
    """
    loose, stored = 0, False
    for parts, _ in _ptx_statements(text):
        if parts[0] == "st" and "global" in parts:
            stored = True
        elif parts[0] in {"bar", "barrier"}:
            stored = False
        elif parts[0] in {"atom", "red"} and {"release", "acq_rel"} & {*parts}:
            loose += stored
    return loose


def ptx_accesses(text: str, names: list[str]) -> tuple[Access, ...]:
    """Accesses to global memory in the PTX `text` of a kernel whose arguments are `names`."""
    return _counted(*_ptx_memory(text, names))


def ptx_hints(text: str, names: list[str]) -> Hints:
    """Cache modifiers of the loads and stores, by tensor; arguments as `ptx_accesses`."""
    return _hinted(*_ptx_memory(text, names))


def _ptx_memory(text: str, names: list[str]) -> tuple[Dataflow, list[Found]]:
    """Where addresses come from, and every access to global memory."""
    pointers = {int(index) for index in _PTX_POINTER.findall(text)}
    flow = Dataflow()
    found: list[Found] = []
    # the text may use a policy before it creates it
    policies = {register: name for name, register in _PTX_POLICY.findall(text)}
    for parts, operands in _ptx_statements(text):
        registers = _PTX_REGISTER.findall(operands)
        parameter = _PTX_PARAMETER.search(operands)
        if parts[:2] == ["ld", "param"] and parameter and registers:
            index = int(parameter.group(1))
            if index in pointers:
                # Triton's scratch pointers come after the kernel's own arguments
                flow.root(registers[0], names[index] if index < len(names) else "scratch")
        elif parts[0] in _PTX_KINDS and "global" in parts:
            address = _PTX_REGISTER.search(operands[operands.index("[") :])
            is_float = any(re.fullmatch(r"b?f\d+(x2)?", part) for part in parts)
            if address is not None:
                kind, hint = _PTX_KINDS[parts[0]], _ptx_hint(parts, registers, policies)
                found.append((kind, address.group(), _ptx_width(parts), is_float, hint))
        elif parts[0] == "cp" and "async" in parts and "global" in parts:
            # [shared], [global], bytes
            _, _, source = operands.partition("],")
            address = _PTX_REGISTER.search(source)
            size = re.search(r"\],\s*(0x[0-9a-f]+|\d+)", source)
            if address is not None and size is not None:
                hint = _ptx_hint(parts, registers, policies)
                found.append((LOAD, address.group(), int(size.group(1), 0), False, hint))
        elif parts[0] not in {"ld", "st", "bra", "ret"} and registers:
            flow.define(registers[0], registers[1:])
    return flow, found


def _ptx_hint(parts: list[str], registers: list[str], policies: dict[str, str]) -> str:
    """Cache modifiers of an instruction, such as `cg` or `L1::evict_last`; "" for none.

    A policy in a register, the last operand, is named by what created it.
    """
    modifiers = [
        policies.get(registers[-1], part) if part == "L2::cache_hint" else part
        for part in parts
        if part in _PTX_CACHES or part.startswith(("L1::", "L2::"))
    ]
    return ".".join(modifiers)


def _ptx_width(parts: list[str]) -> int:
    """Bytes per thread of an instruction such as ld.global.v4.b32."""
    lanes = next((int(part[1:]) for part in parts if re.fullmatch(r"v\d", part)), 1)
    if "f16x2" in parts or "bf16x2" in parts:
        return lanes * 4
    bits = next(
        int(re.sub(r"\D+", "", part)) for part in parts if re.fullmatch(r"b?[bfsu]\d+", part)
    )
    return lanes * bits // 8


_LLVM_DEFINITION = re.compile(r"^\s*(%[\w.]+) = (.*)$")
_LLVM_REGISTER = re.compile(r"%[\w.\-]+")
_LLVM_ARGUMENT = re.compile(r"(\w+)(?: addrspace\(1\))?(?: [\w]+(?:\([^)]*\))?)* (%[\w.\-]+)")
_LLVM_TYPE = r"(<\d+ x \w+>|\w+)"
_LLVM_GLOBAL = re.compile(
    rf"\b(load|store)(?: atomic| volatile)* {_LLVM_TYPE}.*?ptr addrspace\(1\) (%[\w.\-]+)"
)
_LLVM_BUFFER = re.compile(
    rf"{_LLVM_TYPE} @llvm\.amdgcn\.raw\.ptr\.buffer\.(load|store|atomic)[\w.]*"
    rf"\((?:{_LLVM_TYPE} \S+, )?ptr addrspace\(8\) (%[\w.\-]+)"
)
_LLVM_ATOMIC = re.compile(
    rf"\b(?:atomicrmw(?: volatile)? (\w+)|cmpxchg)\s+ptr addrspace\(1\) (%[\w.\-]+), {_LLVM_TYPE}"
)
# the last operand of a buffer access
_LLVM_CACHE = re.compile(r"i32 (\d+)\)[^)]*$")
_LLVM_BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64}


def _llvm_width(kind: str) -> int:
    """Bytes of an LLVM type such as `<4 x i32>`, `half` or `i8`."""
    vector = re.fullmatch(r"<(\d+) x (\w+)>", kind)
    lanes, element = (int(vector.group(1)), vector.group(2)) if vector else (1, kind)
    bits = _LLVM_BITS[element] if element in _LLVM_BITS else int(element[1:])
    return lanes * bits // 8


def llvm_accesses(text: str, names: list[str]) -> tuple[Access, ...]:
    """Accesses to global memory in the LLVM `text` of a kernel whose arguments are `names`."""
    return _counted(*_llvm_memory(text, names))


def llvm_hints(text: str, names: list[str]) -> Hints:
    """Cache bits and markers of the loads and stores, by tensor; arguments as `llvm_accesses`."""
    return _hinted(*_llvm_memory(text, names))


def _llvm_memory(text: str, names: list[str]) -> tuple[Dataflow, list[Found]]:
    """Where addresses come from, and every access to global memory."""
    flow = Dataflow()
    found: list[Found] = []
    for line in text.splitlines():
        if line.startswith("define ") and "amdgpu_kernel" in line:
            for index, (kind, argument) in enumerate(_LLVM_ARGUMENT.findall(line)):
                # an index that comes from a size argument is no base
                if kind == "ptr":
                    flow.root(argument, names[index] if index < len(names) else "scratch")
            continue
        line = line.split(", !dbg", 1)[0]
        access = _llvm_access(line)
        if access is not None:
            found.append(access)
        definition = _LLVM_DEFINITION.match(line)
        # what was loaded is data: an address computed from it belongs to another base
        if definition is not None and (access is None or access[0] == STORE):
            flow.define(definition.group(1), _LLVM_REGISTER.findall(definition.group(2)))
    return flow, found


def _llvm_access(line: str) -> Found | None:
    """The access on one line, None where there is none."""
    if (match := _LLVM_BUFFER.search(line)) is not None:
        result, kind, stored, base = match.groups()
        moved = result if kind == LOAD else stored
        cache = _LLVM_CACHE.search(line)
        hint = f"cache bits {cache.group(1)}" if cache and cache.group(1) != "0" else ""
        return kind, base, _llvm_width(moved), kind == ATOMIC and "fadd" in line, hint
    if (match := _LLVM_ATOMIC.search(line)) is not None:
        operation, base, moved = match.groups()
        return ATOMIC, base, _llvm_width(moved), str(operation).startswith("f"), ""
    if (match := _LLVM_GLOBAL.search(line)) is not None:
        kind, moved, base = match.groups()
        hint = "nontemporal" if "!nontemporal" in line else ""
        return kind, base, _llvm_width(moved), False, hint
    return None


def _counted(flow: Dataflow, found: Iterable[Found]) -> tuple[Access, ...]:
    counts = Counter(
        (kind, flow.origin(register), width, is_float)
        for kind, register, width, is_float, _ in found
    )
    return tuple(
        sorted(
            Access(kind, argument, width, count, is_float)
            for (kind, argument, width, is_float), count in counts.items()
        )
    )


def _hinted(flow: Dataflow, found: Iterable[Found]) -> Hints:
    hints: dict[str, set[str]] = defaultdict(set)
    for kind, register, _, _, hint in found:
        if kind != ATOMIC:
            hints[f"{kind} {flow.origin(register)}"].add(hint or PLAIN)
    return tuple((access, ", ".join(sorted(found))) for access, found in sorted(hints.items()))
