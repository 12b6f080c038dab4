"""Claims about what the compiler makes of our kernels, for GPUs that are not here.

The interpreter replaces the compiler in the tests' own process, so whatever compiles runs in one of
its own.
"""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tritonbn_bench.static import TARGETS, Access, KernelFigures
from tritonbn_bench.static.accesses import (
    Dataflow,
    llvm_accesses,
    ptx_accesses,
    ptx_fp64,
    ptx_loose_releases,
)
from tritonbn_bench.static.check import Demand, judge, resident_programs
from tritonbn_bench.static.plans import cases, quick_cases

ROOT = Path(__file__).resolve().parent.parent
SM_90 = TARGETS["sm_90"]


def run_outside_interpreter(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """This Python with our packages on its path and the real compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_plans_compile_without_fault(target: str) -> None:
    done = run_outside_interpreter("-m", "tritonbn_bench.static", "--quick", "--target", target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 launches with faults" in done.stdout
    assert "gradients_kernel" in done.stdout


def test_check_refuses_to_run_in_the_interpreter() -> None:
    done = run_outside_interpreter("-m", "tritonbn_bench.static", TRITON_INTERPRET="1")
    assert done.returncode == 2
    assert "the interpreter compiles nothing" in done.stderr


@cache
def verdicts(target: str) -> dict[str, list[str]]:
    """What is said against each planted kernel on `target`."""
    done = run_outside_interpreter("tests/planted_kernels.py", target)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


PLANTED = [
    ("narrow_load", "load of x_ptr moves [2] bytes"),
    ("lost_hint", "load of x_ptr moves [2] bytes"),
    ("narrow_store", "store of y_ptr moves [2] bytes"),
    ("one_narrow_pass", "load of x_ptr moves [2, 16] bytes"),
    ("double_precision", "instructions in double precision"),
    ("float_atomic", "floating-point atomics on sum_ptr"),
]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize(("kernel", "sentence"), PLANTED, ids=[name for name, _ in PLANTED])
def test_planted_fault_is_reported(kernel: str, sentence: str, target: str) -> None:
    (said,) = verdicts(target)[kernel]
    assert sentence in said


@pytest.mark.slow
def test_too_few_registers_are_reported_as_spills() -> None:
    (said,) = verdicts("sm_90")["spilling"]
    assert "bytes spilled (24 registers)" in said


@pytest.mark.slow
def test_release_without_a_block_barrier_before_it_is_reported() -> None:
    # our own kernels, and their text with the barriers taken out
    said = verdicts("sm_90")["without_barriers"]
    assert [kernel.split()[0] for kernel in said] == [
        "resident_forward_kernel",
        "resident_backward_kernel",
        "rows_forward_kernel",
        "rows_backward_kernel",
    ]
    assert all(kernel.endswith(" 0 -> 1") for kernel in said)


@pytest.mark.slow
def test_too_few_registers_are_worse_than_the_budget() -> None:
    said = "\n".join(verdicts("sm_90")["with_few_registers"])
    families = ("resident", "rows")
    held = [f"{family}_{which}_kernel" for family in families for which in ("forward", "backward")]
    for kernel in (*held, "gradients_kernel"):
        assert re.search(rf"{kernel}: spill \d+ -> \d+, stack \d+ -> \d+", said), kernel


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize("kernel", ["sound", "given_hint"])
def test_sound_kernel_has_no_fault(kernel: str, target: str) -> None:
    assert verdicts(target)[kernel] == []


def figures(**changes: object) -> KernelFigures:
    """A kernel with nothing to be said against it, but for `changes`."""
    sound: dict[str, object] = {
        "kernel": "k",
        "target": "sm_90",
        "registers": 128,
        "stack_bytes": 0,
        "spill_bytes": 0,
        "shared_bytes": 1024,
        "fp64": 0,
        "accesses": (Access("load", "x_ptr", 16, 4), Access("store", "y_ptr", 16, 4)),
    }
    return KernelFigures(**{**sound, **changes})  # type: ignore[arg-type]


WIDE = Demand(run_bytes=6272, tensor_bytes=2**24, is_double=False)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"spill_bytes": 8}, "8 bytes spilled"),
        ({"registers": 256}, "256 registers a thread"),
        ({"registers": 250}, "do not fit a multiprocessor"),
        ({"registers": 136, "cap": 128}, "136 registers a thread, the launch allows 128"),
        ({"loose_releases": 1}, "1 releases behind stores without bar.sync"),
        ({"shared_bytes": SM_90.shared_bytes + 1}, "bytes of shared memory"),
        ({"fp64": 1}, "double precision"),
        ({"accesses": (Access("load", "dy_ptr", 8, 4),)}, "load of dy_ptr moves [8] bytes"),
    ],
    ids=["spill", "registers", "register-file", "cap", "release", "shared", "fp64", "width"],
)
def test_figure_beyond_its_limit_is_a_fault(changes: dict[str, object], sentence: str) -> None:
    num_warps = 16 if sentence.startswith("do not fit") else 4
    assert any(sentence in said for said in judge(figures(**changes), SM_90, WIDE, num_warps))


def test_sound_figures_are_no_fault() -> None:
    assert list(judge(figures(), SM_90, WIDE, 4)) == []


def test_what_a_held_channel_spills_is_left_to_the_budget() -> None:
    held = figures(kernel="rows_forward_kernel", spill_bytes=64)
    assert list(judge(held, SM_90, WIDE, 4)) == []


@pytest.mark.parametrize(
    ("changes", "num_warps", "programs"),
    [
        ({"registers": 128}, 4, 4 * 132),
        # dealt by 8 a thread: 129 take the room of 136
        ({"registers": 129}, 4, 3 * 132),
        ({"registers": 128}, 8, 2 * 132),
        ({"registers": 32}, 4, 16 * 132),
        ({"registers": 32}, 1, 32 * 132),
        ({"registers": 32, "shared_bytes": 100_000}, 4, 2 * 132),
    ],
    ids=["registers", "rounded-up", "warps", "threads", "programs", "shared"],
)
def test_programs_at_once_are_what_the_scarcest_resource_allows(
    changes: dict[str, object], num_warps: int, programs: int
) -> None:
    assert resident_programs(figures(**changes), SM_90, num_warps) == programs


NARROW = figures(accesses=(Access("load", "x_ptr", 2, 8),))


@pytest.mark.parametrize(
    "demand",
    [
        Demand(run_bytes=98, tensor_bytes=2**24, is_double=False),
        Demand(run_bytes=16, tensor_bytes=64, is_double=False),
    ],
    ids=["ragged-run", "tiny-tensor"],
)
def test_narrow_access_is_right_where_no_vector_fits(demand: Demand) -> None:
    assert list(judge(NARROW, SM_90, demand, 4)) == []


def test_one_element_a_channel_may_be_narrow() -> None:
    accesses = (Access("load", "x_ptr", 2, 1), Access("load", "x_ptr", 16, 4))
    assert list(judge(figures(accesses=accesses), SM_90, WIDE, 4)) == []


def test_address_is_followed_to_every_argument_behind_it() -> None:
    flow = Dataflow()
    flow.root("%rd1", "x_ptr")
    flow.root("%rd2", "y_ptr")
    flow.define("%rd3", ["%rd1", "%r5"])
    # a loop: the register depends on itself
    flow.define("%rd3", ["%rd3", "%rd4"])
    flow.define("%rd5", ["%rd3", "%rd2"])
    assert (flow.origin("%rd3"), flow.origin("%rd5")) == ("x_ptr", "x_ptr|y_ptr")


PTX = """
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u64 .ptr .global .align 1 k_param_1,
	.param .u32 k_param_2,
	.param .u64 .ptr .global .align 1 k_param_3
)
{
	ld.param.b64 	%rd1, [k_param_0];
	ld.param.b64 	%rd2, [k_param_1];
	ld.param.b32 	%r1, [k_param_2];
	mad.wide.s32 	%rd3, %r1, 2, %rd1;
	// begin inline asm
	mov.u32 %r6, 0x0; mov.u32 %r7, 0x0;
	@%p3 ld.global.v4.b32 { %r6, %r7, %r8, %r9 }, [ %rd3 + 0 ];
	// end inline asm
	@!%p1 ld.global.L1::evict_last.b16 { %rs1 }, [ %rd3 + 32 ];
	cp.async.cg.shared.global [ %r2 + 0 ], [ %rd3 + 0 ], 0x10, %r4;
	cvt.f64.f32 	%fd1, %r6;
	cvt.u64.u32 	%rd9, %r7;
	add.s64 	%rd4, %rd2, %rd9;
	st.global.v2.b64 	[ %rd4 + 0 ], { %rd5, %rd6 };
	atom.global.gpu.acq_rel.add.u32 	%r5, [ %rd4 + 0 ], %r6;
	red.global.gpu.relaxed.add.f32 	[ %rd4 + 0 ], %r6;
	ret;
}
	.section	.debug_info
"""


def test_ptx_says_what_moves_how_wide() -> None:
    assert ptx_accesses(PTX, ["x_ptr", "y_ptr", "n"]) == (
        Access("atomic", "y_ptr", 4, 1),
        Access("atomic", "y_ptr", 4, 1, is_float_atomic=True),
        Access("load", "x_ptr", 2, 1),
        # by registers and straight to shared memory
        Access("load", "x_ptr", 16, 2),
        Access("store", "y_ptr", 16, 1),
    )


def test_ptx_double_precision_is_counted() -> None:
    assert ptx_fp64(PTX) == 1


RELEASES = """
	st.global.b32 	[ %rd4 + 0 ], { %r5 };
	bar.sync 	0;
	atom.global.gpu.release.add.u32 	%r5, [ %rd4 + 0 ], %r6;
	ld.global.b32 	{ %r5 }, [ %rd4 + 0 ];
	st.global.b32 	[ %rd4 + 4 ], { %r5 };
	atom.global.gpu.relaxed.add.u32 	%r5, [ %rd4 + 0 ], %r6;
	atom.global.gpu.acq_rel.add.u32 	%r5, [ %rd4 + 0 ], %r6;
"""


def test_release_behind_a_store_needs_a_barrier() -> None:
    # the second: a relaxed atomic publishes nothing
    assert ptx_loose_releases(RELEASES) == 1
    assert ptx_loose_releases(RELEASES.replace("	bar.sync 	0;\n", "")) == 2


LLVM = """
define amdgpu_kernel void @k(ptr addrspace(1) inreg %0, ptr addrspace(1) %1, i32 %2) #0 !dbg !4 {
  %4 = tail call ptr addrspace(8) @llvm.amdgcn.make.buffer.rsrc.p8.p1(ptr addrspace(1) %0)
  %5 = tail call <4 x i32> @llvm.amdgcn.raw.ptr.buffer.load.v4i32(ptr addrspace(8) %4, i32 %2)
  %6 = getelementptr half, ptr addrspace(1) %0, i32 %2
  %7 = load half, ptr addrspace(1) %6, align 2, !dbg !2
  %8 = getelementptr i8, ptr addrspace(1) %1, i64 8
  store <2 x float> %x, ptr addrspace(1) %8, align 8
  %9 = atomicrmw fadd ptr addrspace(1) %8, float %y syncscope("agent") acq_rel, align 4
  %10 = atomicrmw add ptr addrspace(1) %8, i32 1 syncscope("agent") acq_rel, align 4
}
"""


def test_llvm_says_what_moves_how_wide() -> None:
    assert llvm_accesses(LLVM, ["x_ptr", "y_ptr", "n"]) == (
        Access("atomic", "y_ptr", 4, 1),
        Access("atomic", "y_ptr", 4, 1, is_float_atomic=True),
        Access("load", "x_ptr", 2, 1),
        Access("load", "x_ptr", 16, 1),
        Access("store", "y_ptr", 8, 1),
    )


def test_targets_share_no_device_number() -> None:
    assert len({target.index for target in TARGETS.values()}) == len(TARGETS)


def test_cases_reach_both_families_and_all_dtypes() -> None:
    found = {(case.layout, case.dtype) for case in cases()}
    dtypes = ("bf16", "fp16", "fp32", "fp64")
    families = ("channels_first", "channels_last")
    assert found == {(family, dtype) for family in families for dtype in dtypes}
    assert {case.layout for case in quick_cases()} == set(families)
