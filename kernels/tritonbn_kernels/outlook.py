"""What a plan is expected to do on a device: bytes and time. A model until it is measured.

Pure Python. The plan comes from the planners; its time is

    launches * LAUNCH_SECONDS
        + max(bytes from memory / (share * copy speed), bytes asked for / L2 speed) / filled

plus, for a hybrid plan, HYBRID_GROUP_SECONDS for every group that meets while the device waits. A
second read comes from the L2 cache as far as the L2 can hold what was read since the first. Left
out: partial results (a few kilobytes), latencies of launches that are over in one round, what an
earlier kernel has left in the L2, conflicts of the DRAM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tritonbn_kernels.layout import ChannelView
from tritonbn_kernels.plan import (
    ACCESS_BYTES,
    REGISTER_CAP,
    DeviceProfile,
    LaunchPlan,
    plan_pointwise,
    plan_reduction,
    row_pins,
    row_reads_once,
)
from tritonbn_kernels.plan_file import planned_by_file
from tritonbn_kernels.residency import ResidentPlan
from tritonbn_kernels.row_plans import RowsPlan, plan_one_read
from tritonbn_kernels.traffic import floor_bytes, two_read_bytes

Plan = ResidentPlan | RowsPlan | LaunchPlan

# share of the copy speed that a one-read kernel reaches. simulated: 96 to 100 % with two groups in
# flight, less what the simulation leaves out
ONE_READ_SHARE = 0.95
# and with fewer than two groups in flight, when all programs wait at once. simulated: 65 to 78 %
ALONE_SHARE = 0.74
# share that a two-read kernel reaches. assumed: plain streams are published at about 90 %
TWO_READ_SHARE = 0.92
# seconds that a launch takes before and after its bytes move. assumed: start and drain
LAUNCH_SECONDS = 3e-6
# seconds of a hybrid group in which memory is idle. assumed: the latencies of the simulation, that
# is arrival, poll, partial results, statistics, and the first loads after them
HYBRID_GROUP_SECONDS = 3.5e-6
# how far an SM exceeds its share of the speeds where others are idle. assumed: its loads in flight
SM_EXCESS = 2.0


@dataclass(frozen=True)
class Device:
    """A device to plan for, and how fast it is: from data sheets and assumptions, not measured.

    copy_speed: bytes/s, read and written, of a copy far larger than the L2. l2_speed: bytes/s
    between SMs and L2.
    """

    name: str
    profile: DeviceProfile
    copy_speed: float
    l2_speed: float


# 4.8 TB/s on paper, of which a copy is assumed to reach 90 %; the L2 speed is that of an H100
H200 = Device("H200", DeviceProfile(132, l2_bytes=60 * 10**6), 4.3e12, 5.5e12)
# 3.35 TB/s on paper; 3.0 are published for memory-bound kernels
H100 = Device("H100", DeviceProfile(132, l2_bytes=50 * 10**6), 3.0e12, 5.5e12)
# 2.04 TB/s on paper, 81 % assumed for a copy; the L2 is assumed to be twice as fast
A100 = Device("A100", DeviceProfile(108, l2_bytes=40 * 10**6), 1.65e12, 3.3e12)
DEVICES = {"h200": H200, "h100": H100, "a100": A100}


def scaled_to(profile: DeviceProfile, whole: Device, name: str) -> Device:
    """A device with this profile and the speeds of `whole` in proportion to its SMs: a slice of it,
    or the best guess at a device without a row of its own."""
    share = profile.sm_count / whole.profile.sm_count
    return replace(
        whole,
        name=name,
        profile=profile,
        copy_speed=whole.copy_speed * share,
        l2_speed=whole.l2_speed * share,
    )


# the smallest slice of an H200: an eighth of its memory and L2
DEVICES["mig16"] = scaled_to(
    DeviceProfile(16, l2_bytes=60 * 10**6 // 8), H200, "MIG slice of an H200"
)


@dataclass(frozen=True)
class Outlook:
    """What is expected of one call. Modelled, not measured.

    mode: one of `traffic.MODES`. kind: "one read", "hybrid" or "two reads". family: "resident",
    "narrow" or "rows" of the one-read kernels, "fused" or "split" of the two-read kernels,
    "pointwise" in eval. plans: one for each launch. groups: blocks of channels. members: programs
    that share one. in_flight: groups that are worked on at once. tensor_bytes: of one tensor.
    held_bytes: of the tensors read, what stays on the chip from first use to last. reads: tensors
    that the programs read, memory_reads: that come from memory; one is written. Bytes count the
    per-channel vectors too. filled: share of the device's speed that so few programs can draw.
    two_read_seconds: of a two-read kernel in one launch that no cache
    helps; floor_seconds: of a copy of as many bytes as must move.
    """

    mode: str
    kind: str
    family: str
    plans: tuple[Plan, ...]
    groups: int
    members: int
    in_flight: float
    filled: float
    tensor_bytes: int
    held_bytes: int
    reads: float
    memory_reads: float
    requested_bytes: int
    memory_bytes: int
    floor_bytes: int
    two_read_bytes: int
    seconds: float
    two_read_seconds: float
    floor_seconds: float

    @property
    def plan(self) -> Plan:
        """The plan of the first launch."""
        return self.plans[0]

    @property
    def launches(self) -> int:
        """Kernels started."""
        return len(self.plans)

    @property
    def programs(self) -> int:
        """Programs of the first launch."""
        plan = self.plan
        return self.groups * self.members if isinstance(plan, LaunchPlan) else plan.programs

    @property
    def held_share(self) -> float:
        """Share of the tensors read that stays on the chip."""
        return self.held_bytes / (_streams(self.mode) * self.tensor_bytes)


def outlook(
    mode: str,
    views: tuple[ChannelView, ...],
    itemsize: int,
    device: Device,
    fused: str = "nothing",
) -> Outlook:
    """What is expected of a call with tensors at multiples of 16 bytes.

    Args:
        mode: one of `traffic.MODES`.
        views: of the tensors read and written, grouped alike: x, y forward, dy, x, dx backward.
        itemsize: bytes per element.
        device: where it runs.
        fused: one of `plan_file.FUSED`, for what is planned; bytes and time are those of BatchNorm
            alone.

    Raises:
        ValueError: unknown mode, or a bad TRITONBN_PLAN or TRITONBN_PLAN_FILE.
    """
    view = views[0]
    numel = view.count * view.n_channels
    least = floor_bytes(mode, numel, view.n_channels, itemsize)
    twice = two_read_bytes(mode, numel, view.n_channels, itemsize)
    gpu = device.name, device.profile.sm_count
    with planned_by_file(mode, views, itemsize, fused, lambda: gpu, strict=False):
        family, plans = _plans(mode, views, itemsize, device.profile, fused)
    tensor, streams = numel * itemsize, _streams(mode)
    members = plans[0].splits
    at_once = _programs_at_once(plans[0], view, device.profile)
    in_flight = at_once / members
    held = _held(plans[0], view)
    again = 0.0 if least == twice else 1 - held
    missed = again and _missed(plans[0], view, again, streams * tensor, in_flight, device.profile)
    kind = "one read" if not again else "hybrid" if held else "two reads"
    requested, memory = (least + int(part * streams * tensor) for part in (again, missed))
    filled = min(1.0, SM_EXCESS * at_once / device.profile.sm_count)
    share = _share(kind, family, members, in_flight)
    seconds = max(memory / (share * device.copy_speed), requested / device.l2_speed) / filled
    seconds += len(plans) * LAUNCH_SECONDS
    if kind == "hybrid" and members > 1:
        seconds += plans[0].blocks(view.n_channels) / max(1, int(in_flight)) * HYBRID_GROUP_SECONDS
    return Outlook(
        mode=mode,
        kind=kind,
        family=family,
        plans=plans,
        groups=plans[0].blocks(view.n_channels),
        members=members,
        in_flight=in_flight,
        filled=filled,
        tensor_bytes=tensor,
        held_bytes=int(held * streams * tensor),
        reads=streams * (1 + again),
        memory_reads=streams * (1 + missed),
        requested_bytes=requested,
        memory_bytes=memory,
        floor_bytes=least,
        two_read_bytes=twice,
        seconds=seconds,
        two_read_seconds=twice / (TWO_READ_SHARE * device.copy_speed) + LAUNCH_SECONDS,
        floor_seconds=least / device.copy_speed,
    )


def _streams(mode: str) -> int:
    """Tensors read: x forward, dy and x backward."""
    return 1 if mode.startswith("forward") else 2


def _plans(
    mode: str, views: tuple[ChannelView, ...], itemsize: int, profile: DeviceProfile, fused: str
) -> tuple[str, tuple[Plan, ...]]:
    """The family, and the plans of its launches, as the launchers choose them."""
    vector = min(view.vector(ACCESS_BYTES // itemsize) for view in views)
    if mode == "forward_eval":
        return "pointwise", (plan_pointwise(views[0], itemsize, profile, vector),)
    if mode != "backward_eval":
        once = plan_one_read(views, itemsize, profile, _streams(mode))
        if isinstance(once, ResidentPlan):
            return "resident", (once,)
        if once is not None:
            return ("narrow" if once.block_s > 1 else "rows"), (once,)
        if row_reads_once():
            with row_pins({}):
                return _plans(mode, views, itemsize, profile, fused)
    sides = int(mode.startswith("backward") and fused == "residual")
    plan = plan_reduction(views[0], itemsize, profile, vector, sides)
    family = "fused" if plan.fused else "split"
    if plan.fused or mode == "backward_eval":
        return family, (plan,)
    return family, (plan, plan_pointwise(views[0], itemsize, profile, vector))


def _programs_at_once(plan: Plan, view: ChannelView, profile: DeviceProfile) -> int:
    """Programs of a launch that are on the device together."""
    if isinstance(plan, LaunchPlan):
        return min(plan.grid(view.n_channels), profile.programs(REGISTER_CAP, plan.num_warps))
    return min(plan.programs, profile.programs(plan.max_registers, plan.num_warps))


def _held(plan: Plan, view: ChannelView) -> float:
    """Share of each tensor that stays in registers from first use to last."""
    if isinstance(plan, LaunchPlan):
        return 0.0
    if isinstance(plan, ResidentPlan) or not plan.stream:
        return 1.0
    return 1 - plan.streamed_rows(view.n_outer) / view.n_outer


def _missed(
    plan: Plan, view: ChannelView, again: float, read: int, in_flight: float, profile: DeviceProfile
) -> float:
    """Share of the tensors read, `read` bytes, whose second read comes from memory, of the share
    `again` that is read twice.

    A hybrid group reads in reverse, so that the L2 serves its most recent part: all of the usable
    L2, as if no two groups read again at the same time. A two-read kernel reads forwards: the L2
    serves all or nothing of what is between first and second read.
    """
    if isinstance(plan, LaunchPlan):
        between = read * in_flight / plan.blocks(view.n_channels) if plan.fused else read
        return again if between > profile.usable_l2 else 0.0
    return max(0.0, again - profile.usable_l2 * plan.blocks(view.n_channels) / read)


def _share(kind: str, family: str, members: int, in_flight: float) -> float:
    """Share of the copy speed."""
    if family in ("fused", "split", "pointwise"):
        return TWO_READ_SHARE
    alone = kind == "one read" and members > 1 and in_flight < 2
    return ALONE_SHARE if alone else ONE_READ_SHARE
