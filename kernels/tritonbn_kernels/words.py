"""Data held on chip as 32-bit words: two 16-bit values or one fp32 value each.

Held as 16-bit tensors, values may take a register each; as words they take half. `opaque` makes the
compiler forget what it derived from them, or it would keep every unpacked value and every address
alive across the barrier (229 registers instead of 128 for 64 words a thread on sm_90).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def opaque(words, ASM: tl.constexpr):
    """`words` as the compiler has never seen them; without ASM (AMD, interpreter) as they are."""
    if ASM:
        words = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [words], dtype=words.dtype, is_pure=False, pack=1
        )
    return words


@triton.jit
def unpack(words, DTYPE: tl.constexpr):
    """The fp32 values of int32 words: one tile (fp32), or two of the even and the odd halves."""
    if DTYPE == tl.float32:
        values = (words.to(tl.float32, bitcast=True),)
    elif DTYPE == tl.bfloat16:
        # a bf16 is the upper half of its fp32
        even = (words << 16).to(tl.float32, bitcast=True)
        odd = (words & -65536).to(tl.float32, bitcast=True)
        values = (even, odd)
    else:
        even = (words & 65535).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        odd = (words >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        values = (even, odd)
    return values


@triton.jit
def fp32_values(words, DTYPE: tl.constexpr):
    """The fp32 values of int32 words, those of one word along a new last axis."""
    parts = unpack(words, DTYPE)
    if DTYPE == tl.float32:
        values = tl.expand_dims(parts[0], -1)
    else:
        values = tl.join(parts[0], parts[1])
    return values


@triton.jit
def interleave(values, DTYPE: tl.constexpr):
    """What `unpack` took apart, as DTYPE along the last axis."""
    if DTYPE == tl.float32:
        merged = values[0]
    else:
        pairs = tl.join(values[0], values[1])
        merged = tl.reshape(
            pairs, (pairs.shape[0], pairs.shape[1], pairs.shape[2] * pairs.shape[3])
        )
    return merged.to(DTYPE)
