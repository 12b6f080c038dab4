"""The GPU on which plans are searched."""

from __future__ import annotations

from dataclasses import dataclass

from tritonbn_kernels.outlook import Device

from ..environment import Environment
from .trial import PlanMeter

__all__ = ["Machine", "local_machine"]


@dataclass(frozen=True)
class Machine:
    """Where plans are measured.

    Attributes:
        device: what the planner knows of it
        meter: checks and times plans
        environment: what is said with every measurement
    """

    device: Device
    meter: PlanMeter
    environment: Environment

    @property
    def gpu(self) -> tuple[str, int]:
        """Name and SMs, by which plan files are kept."""
        return self.device.name, self.device.profile.sm_count


def local_machine(command: str) -> Machine:
    """The GPU of this machine.

    Args:
        command: that searches

    Raises:
        LookupError: nothing can be searched here; the text says why
    """
    from ..plan_table import device_of

    try:
        device, _ = device_of("local")
    except ValueError as error:
        raise LookupError(
            f"nothing can be searched here ({error.__cause__}): plans are compared by their times "
            "on a GPU, and times in Triton's interpreter say nothing about them; --list prints "
            "what a GPU would try"
        ) from error
    from ..clocks import clock_of
    from ..environment import collect
    from ..stopwatch import stopwatch_of
    from .bench import Bench

    meter = Bench("cuda", stopwatch_of("cuda"), clock_of("cuda"))
    return Machine(device, meter, collect("cuda", command))
