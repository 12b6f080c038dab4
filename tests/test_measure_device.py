"""What is asked of a GPU beside times: clocks, throttling, graphs, memory; by stand-ins."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tritonbn_bench.clocks import clock_of
from tritonbn_bench.footprint import peak_bytes
from tritonbn_bench.graphs import replayed
from tritonbn_bench.judge.decision import usable
from tritonbn_bench.judge.rounds import no_clock, take_round
from tritonbn_bench.judge.rule import RULE
from tritonbn_bench.timer import Work


class _NVMLError(Exception):
    pass


def _driver(mask: int, *, name: str = "EventReasons", absent: bool = False) -> Any:
    """nvidia-ml-py with a driver behind it that knows one GPU."""
    driver: Any = ModuleType("pynvml")
    driver.NVMLError, driver.NVML_CLOCK_SM = _NVMLError, 1

    def handle_of(uuid: str) -> str:
        if absent or uuid != "GPU-12ab":
            raise _NVMLError(f"no {uuid}")
        return "handle"

    driver.nvmlInit = lambda: None
    driver.nvmlDeviceGetHandleByUUID = handle_of
    driver.nvmlDeviceGetClockInfo = lambda handle, kind: 1755
    setattr(driver, f"nvmlDeviceGetCurrentClocks{name}", lambda handle: mask)
    return driver


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sees a GPU by its bare uuid."""
    properties = SimpleNamespace(uuid="12ab")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("name", ["EventReasons", "ThrottleReasons"])
def test_the_clock_tells_mhz_and_what_holds_it_down(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # idle and application clocks are no throttling
    monkeypatch.setitem(sys.modules, "pynvml", _driver(0x1 | 0x2 | 0x4 | 0x40, name=name))
    assert clock_of("cuda")() == (1755.0, ("sw power cap", "hw thermal slowdown"))


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        pytest.param(0x0, True, id="free"),
        pytest.param(0x4, True, id="power-cap"),
        pytest.param(0x8, False, id="slowdown"),
        pytest.param(0x20, False, id="thermal"),
        pytest.param(0x80, False, id="power-brake"),
    ],
)
def test_a_round_that_the_hardware_held_down_does_not_count(
    monkeypatch: pytest.MonkeyPatch, mask: int, counts: bool
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _driver(mask))
    taken = take_round({"a": lambda: 1.0}, 0, clock_of("cuda"))
    assert taken.clock_mhz == 1755.0
    assert (usable([taken], RULE)[0] == (taken,)) == counts


@pytest.mark.usefixtures("one_gpu")
def test_where_nobody_tells_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert clock_of("cpu") is no_clock
    monkeypatch.setitem(sys.modules, "pynvml", _driver(0, absent=True))
    assert clock_of("cuda") is no_clock
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert clock_of("cuda") is no_clock


class _StubGraphs:
    """What of `torch.cuda` a graph needs, noting what is captured and what is replayed."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.streams: list[object] = []
        self.graphs = 0

    def Stream(self) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    def set_stream(self, stream: object) -> None:
        self.streams.append(stream)

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def CUDAGraph(self) -> SimpleNamespace:
        self.graphs += 1
        name = f"graph {self.graphs}"
        return SimpleNamespace(
            name=name, pool=lambda: f"pool of {name}", replay=lambda: self.log.append(name)
        )

    def stream(self, stream: object) -> "_StubGraphs":
        return self

    def graph(self, graph: Any, *, pool: str | None = None, stream: object) -> "_StubGraphs":
        self.log.append(f"capture {graph.name} in {pool}")
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("with_setup", [False, True])
def test_a_graph_times_the_call_and_replays_its_setup_untimed(
    monkeypatch: pytest.MonkeyPatch, with_setup: bool
) -> None:
    stub = _StubGraphs()
    monkeypatch.setattr(torch, "cuda", stub)

    def setup() -> str:
        stub.log.append("setup")
        return "state"

    work = Work(lambda state: stub.log.append(f"call on {state}"), setup)
    replay = replayed(work, with_setup=with_setup)
    captured = stub.log[stub.log.index("synchronize") + 1 :]
    if with_setup:
        assert captured == [
            *("capture graph 1 in None", "setup"),
            *("capture graph 2 in pool of graph 1", "call on state"),
        ]
    else:
        assert captured == ["capture graph 2 in None", "call on None"]
    stub.log.clear()
    state = replay.setup()
    assert stub.log == (["graph 1"] if with_setup else [])
    # whatever a capture leaves behind
    assert len(stub.streams) == 1
    stub.log.clear()
    replay.call(state)
    assert stub.log == ["graph 2"]


def test_the_peak_is_what_the_call_adds_to_what_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = {"now": 1000, "most": 5000}

    def take(bytes_: int) -> None:
        held["now"] += bytes_
        held["most"] = max(held["most"], held["now"])

    stub = SimpleNamespace(
        synchronize=lambda: None,
        reset_peak_memory_stats=lambda: held.update(most=held["now"]),
        memory_allocated=lambda: held["now"],
        max_memory_allocated=lambda: held["most"],
    )
    monkeypatch.setattr(torch, "cuda", stub)

    def call(_: object) -> None:
        take(300)
        take(-200)

    assert peak_bytes(Work(call, lambda: take(700))) == 300
