"""Every place where the interpreter touches memory, behind one hook.

The builder's methods are hooked, not the language's: what a kernel calls through `tl.load`,
descriptors or device functions ends there, on triton 3.6.0 and on 3.9.0. Triton 3.9's atomic loads,
stores and polls end in masked loads and stores, and are seen as those.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

__all__ = ["Access", "memory_hook", "replaced"]

# sets an attribute back to being absent
_ABSENT = object()


@dataclass(frozen=True, eq=False, slots=True)
class Access:
    """One block operation on memory, not performed yet.

    `addresses` (uint64, in bytes) and `active` (bool) have one entry per lane; `itemsize` is the
    bytes of each. `releases`: an atomic with release semantics. `perform()` does it and gives the
    interpreter's result; `perform(active)` does it for these lanes only.
    """

    kind: str
    addresses: Any
    active: Any
    itemsize: int
    releases: bool
    perform: Callable[..., Any]

    @property
    def key(self) -> tuple[str, int, int]:
        """What two operations on the same addresses have in common."""
        return self.kind, int(self.addresses.flat[0]), self.addresses.size


@contextmanager
def memory_hook(
    on_access: Callable[[Access], Any], on_barrier: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hand every load, store and atomic of kernels in the interpreter to `on_access`.

    Args:
        on_access: gives what the kernel shall see: `access.perform()`, or another value of its
            kind. Of two hooks the inner context's is asked first.
        on_barrier: called at every block barrier of a kernel.

    Mutates: the interpreter's builder, until exit. Kernels on a GPU are not touched.
    """
    builder = interpreter.interpreter_builder
    load, store = builder.create_masked_load, builder.create_masked_store
    rmw, cas, barrier = builder.create_atomic_rmw, builder.create_atomic_cas, builder.create_barrier

    def create_masked_load(ptrs: Any, mask: Any, *rest: Any) -> Any:
        return on_access(_access("load", ptrs, mask, lambda lanes: load(ptrs, lanes, *rest)))

    def create_masked_store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        return on_access(
            _access("store", ptrs, mask, lambda lanes: store(ptrs, value, lanes, *rest))
        )

    def create_atomic_rmw(op: Any, ptr: Any, val: Any, mask: Any, sem: Any, scope: Any) -> Any:
        return on_access(
            _access("atomic", ptr, mask, lambda lanes: rmw(op, ptr, val, lanes, sem, scope), sem)
        )

    def create_atomic_cas(ptr: Any, cmp: Any, val: Any, sem: Any, scope: Any) -> Any:
        def perform(lanes: Any) -> Any:
            if not lanes.data.all():
                raise IndexError("compare-and-swap outside every tensor: it has no mask to obey")
            return cas(ptr, cmp, val, sem, scope)

        every = interpreter.TensorHandle(np.ones_like(ptr.data, dtype=bool), tl.int1)
        return on_access(_access("atomic", ptr, every, perform, sem))

    def create_barrier(*args: Any) -> Any:
        if on_barrier is not None:
            on_barrier()
        return barrier(*args)

    with replaced(
        builder,
        create_masked_load=create_masked_load,
        create_masked_store=create_masked_store,
        create_atomic_rmw=create_atomic_rmw,
        create_atomic_cas=create_atomic_cas,
        create_barrier=create_barrier,
    ):
        yield


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of `owner`, an object or a class, until exit."""
    before = {name: vars(owner).get(name, _ABSENT) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _access(
    kind: str, ptrs: Any, mask: Any, perform: Callable[[Any], Any], semantics: Any = None
) -> Access:
    memory = interpreter._ir.MEM_SEMANTIC

    def with_mask(active: Any = None) -> Any:
        return perform(mask if active is None else interpreter.TensorHandle(active, tl.int1))

    return Access(
        kind=kind,
        addresses=ptrs.data,
        active=mask.data,
        itemsize=max(1, ptrs.get_element_ty().primitive_bitwidth // 8),
        releases=semantics in (memory.RELEASE, memory.ACQUIRE_RELEASE),
        perform=with_mask,
    )
