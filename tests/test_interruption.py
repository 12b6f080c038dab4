"""Ctrl-C that Python or a library loses: a verb of three pieces loses it in its first."""

import signal
from pathlib import Path

import pytest

from tests.processes import Process
from tritonbn_bench import cli
from tritonbn_bench.results import Results
from tritonbn_bench.verbs import env

VERB = """
import signal, sys, weakref
from tritonbn_bench import cli
from tritonbn_bench.progress import progress
from tritonbn_bench.verbs import env

class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def finalizer():
    Dying()

def callback():
    some = {1}
    other = weakref.ref(some, lambda _: signal.raise_signal(signal.SIGINT))

def bare_except():
    try:
        signal.raise_signal(signal.SIGINT)
    except:
        pass

def other_error():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise TypeError("expected a sequence of integers")

def verb(options):
    with progress("pieces", 3) as advance:
        for piece in range(1 if WHERE == "last" else 3):
            print("piece", piece, flush=True)
            if not piece:
                WAY()
            if WHERE != "last":
                advance()
    return 0

env.run = verb
sys.exit(cli.main(["env"]))
"""


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("way", ["finalizer", "callback", "bare_except", "other_error"])
def test_a_lost_interruption_ends_the_verb_at_the_next_piece(way: str, where: str) -> None:
    code = VERB.replace("WAY", way).replace("WHERE", repr(where))
    with Process(python=("-c", code)) as process:
        done = process.end()
    assert (done.returncode, done.stdout) == (130, "piece 0\n"), done.stderr
    assert done.stderr.splitlines()[-1] == "tritonbn-bench: interrupted"
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr


# of the accuracy job; the finalizer loses it while the second case is prepared
RUN = """
import signal, sys
from tritonbn_bench import accuracy, cli

class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

calls, make_inputs = [], accuracy.make_inputs

def losing(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
        Dying()
    return make_inputs(*arguments)

accuracy.make_inputs = losing
code = cli.main(sys.argv[1:])
print("cases:", len(calls))
sys.exit(code)
"""


def test_a_run_ends_with_the_case_in_which_it_was_lost_and_leaves_that_out(tmp_path: Path) -> None:
    words = ("run", "--quick", "--only", "accuracy", "--out", str(tmp_path))
    with Process(*words, python=("-c", RUN)) as process:
        done = process.end()
    assert done.returncode == 130, done.stderr
    assert "interrupted; go on with --resume" in done.stderr
    assert done.stdout.splitlines()[-1] == "cases: 2"
    # tritonbn's and torch's
    assert len({row.case for row in Results.load(tmp_path).rows}) == 1


def test_somebody_elses_handler_stays_and_pythons_own_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []

    def verb(options: object) -> int:
        seen.append(signal.getsignal(signal.SIGINT))
        return 0

    def theirs(*_: object) -> None: ...

    monkeypatch.setattr(env, "run", verb)
    before = signal.signal(signal.SIGINT, theirs)
    try:
        assert cli.main(["env"]) == 0
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert cli.main(["env"]) == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen[0] is theirs
    assert seen[1] not in (theirs, signal.default_int_handler)
