"""Kernels run without a GPU: Triton's interpreter, mended, under a schedule of our choice, and with
its traffic counted."""

from .interpreter import mend_interpreter, random_program_order
from .meter import OutOfBounds, TrafficReport, traffic_meter
from .scheduler import DeadlockError, cooperative

__all__ = [
    "DeadlockError",
    "OutOfBounds",
    "TrafficReport",
    "cooperative",
    "mend_interpreter",
    "random_program_order",
    "traffic_meter",
]
