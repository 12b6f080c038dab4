"""One-read and hybrid plans of rows: channels_last, and images of narrow planes.

Pure Python. Groups and their sizes as in `residency.py`; what is particular to rows is how wide a
block of channels is (wider rows are better accesses, narrower ones smaller groups), and that a
group which no grid can hold may keep a part and read the rest twice, partly from the L2 cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, isqrt

from tritonbn_kernels.layout import CHANNELS_LAST, ChannelView
from tritonbn_kernels.plan import (
    ACCESS_BYTES,
    DeviceProfile,
    is_pinned,
    pinned,
    power_of_two_at_least,
)
from tritonbn_kernels.residency import (
    ITEMS_PER_SM,
    MAX_REGISTERS,
    MOST_PIECES,
    ResidentPlan,
    enough_members,
    plan_resident,
)

# threads of a program, and the 32-bit words of one tile: one 16-byte access of each thread
ROW_THREADS = 256
TILE_WORDS = 4 * ROW_THREADS
# channels_last: bytes of a row, in order of preference: whole cache lines, then down to a sector,
# with which groups are smaller. modelled, not timed
ROW_BYTES = (128, 64, 32)
# tiles of each tensor that one program holds: 112 KB an SM. compiled, not timed: so many keep up to
# 40 bytes of stack in half precision, two more 112
ROW_PIECES = {1: 14, 2: 7}
# share of two items an SM with which a device counts as full. modelled: narrower rows cost as much
# as the rest brings
FILL = 0.75
# narrow planes: tiles of each tensor that one program may hold, in order of preference. compiled,
# not timed: 8 (4 + 4) keep up to 208 bytes of stack forward and none backward in half precision,
# 12 (6 + 6) up to 288 and 248
NARROW_PIECES = {1: (8, 12), 2: (4, 6)}
# share of a row that whole channels must fill
NARROW_FILL = 0.5
# hybrid: tiles of each tensor that are held, and that are read at a time beyond them. compiled, not
# timed: no stack in channels_last, where 12 (6 + 6) keep up to 48 bytes; more of narrow planes
HYBRID_PIECES = {1: 10, 2: 5}
HYBRID_STREAM = {1: 4, 2: 2}
# bytes of a row of a hybrid plan in channels_last. modelled: half a line, in groups half as large
HYBRID_ROW_BYTES = 64
# share of a group that must stay on chip, L2 included, for a hybrid plan. modelled: below it the
# waiting costs more than the second read that is spared
HYBRID_SHARE = 0.1
# bytes of partial results that one program may read while it merges. modelled: so many take as
# long from L2 as what the program holds takes from memory
MERGE_BYTES = 65536
# bytes of the partial results of one channel and member, forward and backward
PARTIAL_BYTES = {1: 12, 2: 8}
# row numbers have 32 bits
MOST_ROWS = 2**30


@dataclass(frozen=True)
class RowsPlan:
    """Shape of one launch over rows times whole channels.

    A tile is `block_n` rows by `block_w` words, in which `block_channels` channels lie. A member
    has `rows_per_split` rows of a block: `pieces` tiles of them are held, the others (if `stream`
    is not 0) are read twice, `stream` tiles at a time. `splits` members share a block of channels;
    `block_s` is the columns of a channel as a power of two, 1 in channels_last, and `vector_words`
    the words of one access.
    """

    block_channels: int
    block_s: int
    block_n: int
    block_w: int
    vector_words: int
    pieces: int
    stream: int
    splits: int
    rows_per_split: int
    programs: int
    num_warps: int
    max_registers: int

    # as in a fused two-read plan no second launch follows
    fused = True

    def blocks(self, n_channels: int) -> int:
        """Number of channel blocks, that is of groups."""
        return -(-n_channels // self.block_channels)

    def streamed_rows(self, n_rows: int) -> int:
        """Rows that are read twice, of all members."""
        held = self.pieces * self.block_n
        whole, rest = divmod(n_rows, self.rows_per_split)
        return whole * max(self.rows_per_split - held, 0) + max(rest - held, 0)


@dataclass(frozen=True)
class _Rows:
    """What of a tensor and a device the choices below look at."""

    n_rows: int
    n_channels: int
    n_inner: int
    itemsize: int
    # elements of one access
    vector: int
    streams: int
    device: DeviceProfile

    @property
    def programs(self) -> int:
        """Programs of these plans that are on the device at once."""
        return self.device.programs(MAX_REGISTERS, self.warps(TILE_WORDS))

    def warps(self, words: int) -> int:
        """Warps of a program for a tile of so many words: of a small tile too every thread reads 16
        bytes at a time."""
        threads = min(ROW_THREADS, words // 4)
        return pinned("num_warps", max(1, threads // self.device.warp_size))

    @property
    def filling(self) -> int:
        """Items that fill the device."""
        return ITEMS_PER_SM * self.device.sm_count

    def block_w(self, row_bytes: int) -> int:
        """Words of a tile whose rows have at most so many bytes, or a pinned block of channels."""
        if is_pinned("block_c"):
            row_bytes = pinned("block_c", 0) * self.n_inner * self.itemsize
        row_bytes = min(self.n_channels * self.n_inner * self.itemsize, row_bytes)
        return power_of_two_at_least(-(-row_bytes // 4))

    def block_n(self, block_w: int) -> int:
        """Rows of a whole tile."""
        return pinned("block_n", max(1, TILE_WORDS * self.device.tile_scale // block_w))

    def block_channels(self, block_w: int) -> int:
        """Whole channels in so many words that begin at multiples of an access."""
        columns = block_w * 4 // self.itemsize
        if self.n_inner == 1:
            return min(self.n_channels, columns)
        together = self.vector // gcd(self.vector, self.n_inner)
        fitting = columns // (self.n_inner * together) * together
        whole = self.n_channels * self.n_inner <= columns
        return min(self.n_channels, pinned("block_c", self.n_channels if whole else fitting))

    def blocks(self, block_w: int) -> int:
        """Blocks of channels."""
        return -(-self.n_channels // max(1, self.block_channels(block_w)))

    def members(self, block_w: int, pieces: int) -> int:
        """Programs of so many tiles that hold all rows."""
        return -(-self.n_rows // (pieces * self.block_n(block_w)))

    def merged(self, members: int, block_w: int) -> int:
        """Bytes of partial results that each of so many programs reads."""
        return members * PARTIAL_BYTES[self.streams] * self.block_channels(block_w)

    def filled(self, block_w: int) -> bool:
        """Whether whole channels fill enough of so many words."""
        columns = block_w * 4 // self.itemsize
        return self.block_channels(block_w) * self.n_inner >= NARROW_FILL * columns

    def enough(self, members: int, block_w: int, pieces: int, most: int) -> int:
        """`members`, or more where the device would not be full and each of them still reads more
        data than partial results."""
        row_bytes = block_w * 4 * self.streams
        most = min(most, isqrt(self.n_rows * row_bytes // self.merged(1, block_w)))
        others = [self.members(block_w, fewer) for fewer in range(pieces - 1, 0, -1)]
        return enough_members(members, others, self.blocks(block_w), most, self.device)

    def plan(self, block_w: int, members: int, pieces: int = 0, stream: int = 0) -> RowsPlan:
        """The plan of so many members; with `stream`, `pieces` tiles are held, else all."""
        block_channels = self.block_channels(block_w)
        members = pinned("splits", members)
        if self.device.cooperative:
            # a larger group would wait for ever
            members = min(members, self.programs)
        share = -(-self.n_rows // members)
        members = -(-self.n_rows // share)
        block_n = min(self.block_n(block_w), power_of_two_at_least(share))
        tiles = -(-share // block_n)
        pieces = pinned("pieces", pieces or tiles)
        stream = pinned("stream", stream if pieces < tiles else 0)
        items = members * -(-self.n_channels // block_channels)
        return RowsPlan(
            block_channels=block_channels,
            block_s=power_of_two_at_least(self.n_inner),
            block_n=block_n,
            block_w=block_w,
            vector_words=self.vector * self.itemsize // 4,
            pieces=min(pieces, tiles) if stream else max(tiles, pinned("pieces", 0)),
            stream=stream,
            splits=members,
            rows_per_split=share,
            programs=pinned("programs", items if members == 1 else min(items, self.programs)),
            num_warps=self.warps(block_n * block_w),
            max_registers=MAX_REGISTERS,
        )

    def can_be_launched(self, plan: RowsPlan) -> bool:
        """Whether pins left a plan that the compiler need not unroll too far, with rows that a tile
        can hold, and with blocks of channels that begin at multiples of an access."""
        tiles = plan.pieces + plan.stream
        tile_words = TILE_WORDS * self.device.tile_scale
        together = plan.block_channels * self.n_inner
        return (
            max(tiles, tiles * plan.block_n * plan.block_w // tile_words) <= MOST_PIECES
            and plan.block_w <= tile_words
            and (plan.block_channels == self.n_channels or together % self.vector == 0)
        )


def plan_one_read(
    views: tuple[ChannelView, ...], itemsize: int, device: DeviceProfile, streams: int
) -> ResidentPlan | RowsPlan | None:
    """The plan that reads once, or keeps a part: rows in channels_last and where planes hold no
    whole 16-byte vectors, else planes; None where two reads are needed.

    Args:
        views: of all tensors of the launch, which group their elements alike.
        itemsize: bytes per element.
        device: what of the device matters.
        streams: tensors held, 1 forward (x) and 2 backward (x, dy).
    """
    vector = min(view.vector(ACCESS_BYTES // itemsize) for view in views)
    if views[0].family == CHANNELS_LAST or vector * itemsize < ACCESS_BYTES:
        rows = plan_rows(views, itemsize, device, streams)
        if rows is not None:
            return rows
    return plan_resident(views[0], itemsize, device, vector, streams)


def plan_rows(
    views: tuple[ChannelView, ...], itemsize: int, device: DeviceProfile, streams: int
) -> RowsPlan | None:
    """The plan over rows, or None; arguments as `plan_one_read`.

    Rows are those of channels_last, or images whose channels follow one another and begin at
    multiples of 16 bytes.
    """
    if itemsize not in (2, 4) or views[0].n_outer >= MOST_ROWS:
        return None
    if not pinned("resident", not is_pinned("fused", "splits", "block_v")):
        return None
    view, last = views[0], views[0].family == CHANNELS_LAST
    vector = _access(views, itemsize)
    if vector * itemsize < (4 if last else ACCESS_BYTES):
        return None
    rows = _Rows(view.n_outer, view.n_channels, view.n_inner, itemsize, vector, streams, device)
    plan = _channels_last(rows) if last else _narrow(rows)
    return plan if plan is not None and rows.can_be_launched(plan) else None


def _access(views: tuple[ChannelView, ...], itemsize: int) -> int:
    """Elements of one access to rows, 0 where channels do not follow one another."""
    vector = ACCESS_BYTES // itemsize
    for one in views:
        if one.family == CHANNELS_LAST:
            vector = one.vector(vector)
            continue
        if one.n_channels > 1 and one.stride_channel != one.n_inner:
            return 0
        vector = gcd(vector, one.n_channels * one.n_inner)
        if one.n_outer > 1:
            vector = gcd(vector, one.stride_outer)
    return vector


def _narrow(rows: _Rows) -> RowsPlan | None:
    """Whole channels in rows of 4 KB, or of less where small planes would mean many channels to
    merge; None where they fill too little of one."""
    block_w = rows.block_w(TILE_WORDS * 4)
    if not rows.filled(block_w):
        return None
    most = max(rows.programs // 2, 1) if rows.device.cooperative else 1
    # half the width is half the channels, in groups half as large
    while (
        _merges_much(rows, block_w, most) and rows.filled(block_w // 2) and not is_pinned("block_c")
    ):
        block_w //= 2
    for pieces in () if pinned("stream", 0) else NARROW_PIECES[rows.streams]:
        members = rows.members(block_w, pieces)
        if members <= most or is_pinned("splits"):
            return rows.plan(block_w, rows.enough(members, block_w, pieces, most))
    return _hybrid(rows, block_w)


def _merges_much(rows: _Rows, block_w: int, most: int) -> bool:
    """Whether the members of a group of narrow planes would read too many partial results."""
    members = min(rows.members(block_w, NARROW_PIECES[rows.streams][0]), most)
    return members > 1 and rows.merged(members, block_w) > MERGE_BYTES


def _channels_last(rows: _Rows) -> RowsPlan | None:
    """One program for a block of channels where it can hold all rows, else the widest rows whose
    groups fit and fill the device, else a hybrid plan, else None."""
    hybrid_w = rows.block_w(HYBRID_ROW_BYTES)
    if pinned("stream", 0):
        return _hybrid(rows, hybrid_w)
    pieces = ROW_PIECES[rows.streams]
    widths = [rows.block_w(row_bytes) for row_bytes in ROW_BYTES]
    if is_pinned("splits"):
        return rows.plan(widths[0], 1)
    alone = [block_w for block_w in widths if rows.members(block_w, pieces) == 1]
    if alone:
        # no barrier: rather narrow rows than idle SMs
        filling = [block_w for block_w in alone if rows.blocks(block_w) >= rows.filling]
        return rows.plan(filling[0] if filling else alone[-1], 1)
    if not rows.device.cooperative:
        return None
    fitting = []
    for block_w in widths:
        most = min(rows.programs // 2, MERGE_BYTES // rows.merged(1, block_w))
        members = rows.members(block_w, pieces)
        if members <= most:
            fitting.append((block_w, rows.enough(members, block_w, pieces, most)))
    if fitting:
        items = [members * rows.blocks(block_w) for block_w, members in fitting]
        full = [count >= FILL * rows.filling for count in items]
        return rows.plan(*fitting[full.index(True) if any(full) else items.index(max(items))])
    return _hybrid(rows, hybrid_w)


def _hybrid(rows: _Rows, block_w: int) -> RowsPlan | None:
    """As many rows as fit are held, the rest is read twice; None where that spares too little."""
    stream = pinned("stream", HYBRID_STREAM[rows.streams])
    if stream == 0 or not (rows.device.cooperative or is_pinned("stream")):
        return None
    pieces = HYBRID_PIECES[rows.streams]
    members = 1
    if rows.device.cooperative:
        # two groups in flight, where there are two
        members = max(1, rows.programs // min(2, rows.blocks(block_w)))
    held = members * pieces * rows.block_n(block_w) * block_w * 4 * rows.streams
    group = rows.n_rows * block_w * 4 * rows.streams
    if held + rows.device.usable_l2 < HYBRID_SHARE * group and not is_pinned("stream"):
        return None
    return rows.plan(block_w, members, pieces, stream)
