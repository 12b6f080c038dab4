"""Kernels run without a GPU: Triton's interpreter, mended, and under a schedule of our choice."""

from .interpreter import mend_interpreter, random_program_order

__all__ = ["mend_interpreter", "random_program_order"]
