"""Figures of one compiled kernel, read from what the compiler made: no device, no execution."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

from triton import knobs

from .accesses import (
    Access,
    Hints,
    llvm_accesses,
    llvm_hints,
    ptx_accesses,
    ptx_fp64,
    ptx_hints,
    ptx_loose_releases,
)
from .driver import Target


@dataclass(frozen=True)
class KernelFigures:
    """What one binary uses.

    registers: per thread. stack_bytes, spill_bytes: per thread; spills are loads and stores of
    local memory in the binary. shared_bytes: per program. fp64: double-precision instructions.
    """

    kernel: str
    target: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    fp64: int
    accesses: tuple[Access, ...]
    # registers that the launch allowed a thread, 0 where it said nothing
    cap: int = 0
    # release atomics that no block barrier keeps behind the stores before them
    loose_releases: int = 0
    # ("load x_ptr", modifiers of the loads of that tensor, PLAIN among them), sorted
    hints: Hints = ()
    # whether the compiler may join a product and a sum; budgets hold for one answer only
    fp_fusion: bool = True

    def widths(self, kind: str, argument: str) -> list[int]:
        """Distinct widths in bytes, ascending, of the accesses of `kind` to `argument`."""
        return sorted(
            {
                access.width
                for access in self.accesses
                if access.kind == kind and argument in access.argument.split("|")
            }
        )


def examine(compiled: Any, target: Target) -> KernelFigures:
    """Figures of Triton's compiled kernel object, made for `target`."""
    names = argument_names(compiled)
    if target.backend == "cuda":
        text = compiled.asm["ptx"]
        registers, stack = _cubin_usage(compiled.asm["cubin"])
        spills = _cubin_spills(compiled.asm["cubin"]) if stack else 0
        accesses, hints = ptx_accesses(text, names), ptx_hints(text, names)
        fp64 = ptx_fp64(text)
        loose = ptx_loose_releases(text)
    else:
        text = compiled.asm["amdgcn"]
        registers = _noted(text, r"\.vgpr_count:\s*(\d+)")
        stack = _noted(text, r"; ScratchSize: (\d+)")
        # AMD notes spilled registers, of four bytes each
        spills = 4 * _noted(text, r"\.vgpr_spill_count:\s*(\d+)")
        accesses = llvm_accesses(compiled.asm["llir"], names)
        hints = llvm_hints(compiled.asm["llir"], names)
        fp64 = len(re.findall(r"^\s+v_\w*_f64", text, re.MULTILINE))
        # no program waits for another there
        loose = 0
    return KernelFigures(
        kernel=compiled.metadata.name,
        target=target.name,
        registers=registers,
        stack_bytes=stack,
        spill_bytes=spills,
        shared_bytes=compiled.metadata.shared,
        fp64=fp64,
        accesses=accesses,
        cap=getattr(compiled.metadata, "maxnreg", None) or 0,
        loose_releases=loose,
        hints=hints,
        fp_fusion=compiled.metadata.enable_fp_fusion,
    )


def argument_names(compiled: Any) -> list[str]:
    """Names of the arguments that the binary has, in order: constants are compiled away."""
    return [name for name, kind in compiled.src.signature.items() if kind != "constexpr"]


def _noted(text: str, pattern: str) -> int:
    """The largest number that the assembler noted by `pattern`; 0 where it noted none."""
    return max((int(number) for number in re.findall(pattern, text)), default=0)


def _disassembled(cubin: bytes, *options: str) -> str:
    """Output of cuobjdump, which the triton wheel ships, on a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _cubin_usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) per thread."""
    text = _disassembled(cubin, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"expected REG and STACK from cuobjdump, got {text!r}")
    return int(found.group(1)), int(found.group(2))


def _cubin_spills(cubin: bytes) -> int:
    """Bytes per thread that the binary's own loads and stores of local memory move once."""
    moved = 0
    for modifiers in re.findall(r"\b(?:STL|LDL)((?:\.\w+)*)", _disassembled(cubin, "-sass")):
        size = re.search(r"\.[US]?(8|16|64|128)\b", modifiers)
        moved += int(size.group(1)) // 8 if size else 4
    return moved
