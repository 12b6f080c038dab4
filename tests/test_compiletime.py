"""Claims about the measurement of compile time, which runs outside the interpreter."""

import json

import pytest

from tritonbn_bench import compiletime
from tritonbn_bench.compiletime import CompileTime

from .test_static import run_outside_interpreter

PART = ("--layers", "1", "--layout", "channels_last")


@pytest.mark.slow
def test_one_run_compiles_every_kernel_of_the_layers() -> None:
    done = run_outside_interpreter(
        "-m", "tritonbn_bench.compiletime", "--run", "2", *PART, TRITON_ALWAYS_COMPILE="1"
    )
    assert done.returncode == 0, done.stderr
    found = CompileTime(**json.loads(done.stdout))
    # at least one each for training, evaluation and backward
    assert found.kernels >= 3
    assert (found.workers, found.compiled, found.loaded) == (2, found.kernels, 0)
    assert 0 < found.longest < found.wall


def test_table_shows_the_quickest_of_the_rounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    walls = iter([9.0, 5.0, 0.5, 8.0, 6.0, 0.4])
    monkeypatch.setattr(
        compiletime,
        "_measure_elsewhere",
        lambda cache, workers, passed: CompileTime(workers, 20, 20, 0, next(walls), 2.5),
    )
    assert compiletime.main(["--rounds", "2", "--workers", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(line[0], line[-2]) for line in lines] == [
        ("serial", "8.00"),
        ("parallel", "5.00"),
        ("full", "0.40"),
    ]


def test_interpreter_is_refused() -> None:
    done = run_outside_interpreter(
        "-m", "tritonbn_bench.compiletime", "--run", "1", TRITON_INTERPRET="1"
    )
    assert done.returncode == 2
    assert "the interpreter compiles nothing" in done.stderr
