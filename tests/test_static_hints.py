"""Cache hints are read by tensor from what the compiler made, whatever stands between."""

from tritonbn_bench.static.accesses import llvm_hints, ptx_hints

PTX = """
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u64 .ptr .global .align 1 k_param_1,
	.param .u64 .ptr .global .align 1 k_param_2
)
{
	ld.param.b64 	%rd1, [k_param_0];
	ld.param.b64 	%rd2, [k_param_1];
	ld.param.b64 	%rd3, [k_param_2];
	add.s64 	%rd4, %rd1, 16;
	@%p1 ld.global.L1::evict_last.L2::cache_hint.v4.b32 { %r6, %r7, %r8, %r9 }, [ %rd4 + 0 ], %rd9;
	@%p1 ld.global.v4.b32 { %r6, %r7, %r8, %r9 }, [ %rd1 + 0 ];
	createpolicy.fractional.L2::evict_last.b64 %rd9, 1.0;
	ld.global.gpu.acquire.b32 %r3, [ %rd3 + 0 ];
	ld.global.cg.b32 { %r4 }, [ %rd2 + 0 ];
	st.global.wt.b32 [ %rd2 + 0 ], { %r4 };
	atom.global.gpu.acq_rel.add.u32 %r5, [ %rd3 + 0 ], %r6;
	ret;
}
"""


def test_ptx_hints_are_those_of_every_access_to_a_tensor() -> None:
    assert ptx_hints(PTX, ["x_ptr", "partials_ptr", "counter_ptr"]) == (
        ("load counter_ptr", "plain"),
        ("load partials_ptr", "cg"),
        # one with a policy that is made further down, one without
        ("load x_ptr", "L1::evict_last.L2::evict_last, plain"),
        ("store partials_ptr", "wt"),
    )


LLVM = """
define amdgpu_kernel void @k(ptr addrspace(1) inreg %0, ptr addrspace(1) %1) #0 !dbg !4 {
  %4 = tail call ptr addrspace(8) @llvm.amdgcn.make.buffer.rsrc.p8.p1(ptr addrspace(1) %0)
  %5 = tail call float @llvm.amdgcn.raw.ptr.buffer.load.f32(ptr addrspace(8) %4, i32 %2, i32 0, i32 3), !dbg !7
  %6 = tail call float @llvm.amdgcn.raw.ptr.buffer.load.f32(ptr addrspace(8) %4, i32 %2, i32 0, i32 0)
  store float %5, ptr addrspace(1) %1, align 8, !nontemporal !1, !dbg !2
  %9 = atomicrmw add ptr addrspace(1) %1, i32 1 syncscope("agent") acq_rel, align 4
}
"""  # noqa: E501


def test_llvm_hints_are_bits_of_a_buffer_access_and_markers() -> None:
    assert llvm_hints(LLVM, ["x_ptr", "y_ptr"]) == (
        ("load x_ptr", "cache bits 3, plain"),
        ("store y_ptr", "nontemporal"),
    )
