"""Fresh processes by a fork, and blocks repeated where the core was slow."""

import ctypes
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tritonbn_bench.gating import worker
from tritonbn_bench.gating.suites import trials
from tritonbn_bench.gating.worker import Worker
from tritonbn_bench.pace import SLOW, Pace

# a worker that tells which process answers, and what a life was left by the one before
SCRIPT = """
import json, os, sys
from tritonbn_bench.gating.lives import serve_in_lives
said = []
def listen():
    line = sys.stdin.readline()
    return json.loads(line) if line else None
def answer(request):
    if request["do"] == "die":
        os.kill(os.getpid(), 9)
    said.append(request["do"])
    print(json.dumps([os.getpid(), request.get("heritage"), said]), flush=True)
serve_in_lives(listen, answer, lambda: {"said": said})
"""


def _lives(*asked: str) -> tuple[int, list[Any], str]:
    """Exit code, answers and last line of stderr of a worker that is told so."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input="".join(json.dumps({"do": do}) + "\n" for do in asked),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return (
        done.returncode,
        [json.loads(line) for line in done.stdout.splitlines()],
        done.stderr.strip().rpartition("\n")[2],
    )


def test_each_life_is_a_process_of_its_own_and_begins_with_what_the_first_knew() -> None:
    code, answers, _ = _lives("hello", "prepare")
    assert code == 0
    first, born = (answer[0] for answer in answers)
    assert first != born
    assert answers[1][2] == ["hello", "prepare"]


def test_a_life_hands_over_what_it_was_told_last() -> None:
    # a line at a time, as the measurer asks: what is read ahead would be lost
    with subprocess.Popen(
        [sys.executable, "-u", "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        answers = []
        for do in ("hello", "prepare", "block", "renew", "block", "renew"):
            process.stdin.write(json.dumps({"do": do}) + "\n")
            process.stdin.flush()
            answers.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        assert process.wait(timeout=30) == 0
    pids = [answer[0] for answer in answers]
    assert pids[1] == pids[2] and pids[3] == pids[4]
    assert len({pids[0], pids[1], pids[3], pids[5]}) == 4
    assert answers[3][1] == {"said": ["hello", "prepare", "block"]}
    assert answers[5][1] == {"said": ["hello", "renew", "block"]}


def test_a_life_that_dies_ends_the_worker() -> None:
    code, answers, error = _lives("prepare", "die")
    assert code == 1
    assert len(answers) == 1
    assert error == "ChildProcessError: a life ended with -9"


def test_a_new_life_is_planted_and_measures_as_the_one_before() -> None:
    trial = next(iter(trials("quick", "cpu").values()))
    old, new = Worker("cpu"), Worker("cpu")
    case = {**vars(trial.case), "plane": list(trial.case.plane)}
    ready = old.prepare(case, trial.via, 1, None)
    assert not ready["fault"]
    old.plant(4.0, 5, False)
    old.block("ours", 5)
    new.renew(2, json.loads(json.dumps(old.heritage())))
    planted = new.block("ours", 50)["ms"]
    new.plant(0.0, 5, False)
    assert planted > 2 * new.block("ours", 50)["ms"]
    assert new.heritage()["case"] == vars(trial.case)
    assert len(new.heritage()["looks"]) > len(old.heritage()["looks"])


@pytest.fixture
def affinity() -> Iterator[None]:
    """Put back the cores of this process, which a `Worker` gives up."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.usefixtures("affinity"),
]


class _Core:
    """A clock that a loop and calls move: of a core that is slow in some blocks."""

    def __init__(self, speeds: Iterator[float]) -> None:
        self._speeds = speeds
        self._now, self._asked = 0.0, 0
        self.speed = 1.0

    def __call__(self) -> float:
        # asked in pairs, before and after the loop; six times a block
        if self._asked % 6 == 0:
            self.speed = next(self._speeds)
        self._asked += 1
        self._now += self.speed
        return self._now


def test_a_block_in_a_slow_stretch_is_repeated() -> None:
    core = _Core(itertools.chain([1.0, 1.5, 1.5, 1.0], itertools.repeat(9.0)))
    pace = Pace(core)
    blocks: list[float] = []

    def timed(calls: int) -> list[float]:
        blocks.append(core.speed)
        return [core.speed] * calls

    assert pace.steadily(timed, 10) == 1.0
    assert pace.steadily(timed, 10) == 1.0
    assert blocks == [1.0, 1.0, 1.5, 1.5, 1.5, 1.5, 1.0, 1.0]


def test_a_block_is_never_repeated_for_its_own_time() -> None:
    pace = Pace(_Core(itertools.repeat(1.0)))
    assert pace.steadily(lambda calls: [1.0] * calls, 10) == 1.0
    assert pace.steadily(lambda calls: [100.0 * SLOW] * calls, 10) == 100.0 * SLOW


def test_a_core_that_stays_slow_is_taken_as_it_is() -> None:
    core = _Core(itertools.chain([1.0], itertools.repeat(2.0)))
    pace = Pace(core)
    pace.steadily(lambda calls: [core.speed] * calls, 10)
    assert pace.steadily(lambda calls: [core.speed] * calls, 10) == 2.0


class _System:
    """The answers of personality(2), and whether the process started again."""

    def __init__(self, now: int, answer: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started = 0
        self._now, self._answer = now, answer
        monkeypatch.delenv(worker.STARTED_AGAIN, raising=False)
        monkeypatch.setattr(ctypes, "CDLL", lambda _: self)
        monkeypatch.setattr(os, "execv", lambda *_: self._again())

    def personality(self, wanted: int) -> int:
        return self._now if wanted == worker.WHICH else self._answer

    def _again(self) -> None:
        self.started += 1


@pytest.mark.parametrize(
    ("now", "answer", "started"),
    [
        pytest.param(0, 0, 1, id="granted"),
        pytest.param(0, -1, 0, id="refused-as-in-a-container"),
        pytest.param(-1, -1, 0, id="not-even-told"),
        pytest.param(worker.NOT_RANDOM, 0, 0, id="done"),
    ],
)
def test_addresses_are_fixed_by_starting_again_once_where_the_system_lets(
    now: int, answer: int, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = _System(now, answer, monkeypatch)
    # a kernel may agree and do nothing
    for _ in range(2):
        worker._lie_as_others_do()
    assert system.started == started
