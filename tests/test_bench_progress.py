"""What long work says of itself where nobody watches a terminal."""

import pytest

from tritonbn_bench.progress import progress


def test_time_left_is_said_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = 0.0
    monkeypatch.setattr("tritonbn_bench.progress.time.monotonic", lambda: seconds)
    with progress("search", 20) as advance:
        for _ in range(9):
            seconds += 20
            advance()
    assert capsys.readouterr().err.splitlines() == [
        "search: 3 of 20, about 6 min left",
        "search: 6 of 20, about 5 min left",
        "search: 9 of 20, about 4 min left",
        "search: 9 of 20 in 180.0 s",
    ]
