"""What rows amount to: ratios, totals, verdict and exit code."""

from dataclasses import replace

import pytest

from tritonbn_bench.cases import suite
from tritonbn_bench.results import Results, Row
from tritonbn_bench.summary import (
    FAKE_TIMER,
    NO_SPEED,
    exit_code,
    geomean,
    is_fake,
    mean_speedup,
    speedups,
    step_bytes,
    tally,
    times,
)
from tritonbn_bench.verdict import verdict


def _time(provider: str, value: float, **changes: object) -> Row:
    row = Row("resnet50", "measured", "a", provider, "time", unit="ms", value=value, count=1)
    return replace(row, backend=provider.upper(), mode="forward_train", dtype="fp32", **changes)  # type: ignore[arg-type]


def test_geomean_of_a_ratio_and_its_inverse_is_one() -> None:
    assert geomean([4.0, 0.25]) == pytest.approx(1.0)


def test_geomean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        geomean([])


def _shared(value: float, low: float, high: float, case: str = "a") -> list[Row]:
    """Times of tritonbn and torch that shared rounds: ratio of ours to torch's, with its ends."""
    ours = _time("tritonbn", 2.0, case=case)
    ratio = replace(ours, quantity="ratio to torch", unit="1", value=value, low=low, high=high)
    return [ours, _time("torch", 3.0, case=case), ratio]


def test_a_ratio_of_shared_rounds_is_preferred_and_turned_round() -> None:
    (item,) = speedups(_shared(0.5, 0.4, 0.8))
    assert (item.ratio, item.backend) == (2.0, "TORCH")
    assert item.interval is not None
    assert item.interval.as_ratio() == pytest.approx((2.0, 1.25, 2.5))


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        pytest.param(0.90, 0.96, "faster", id="beyond-the-margin"),
        pytest.param(1.04, 1.10, "slower", id="beyond-it-on-the-other-side"),
        pytest.param(0.98, 1.02, "equal", id="within"),
        pytest.param(0.90, 0.98, "uncertain", id="across-it"),
        pytest.param(0.90, 1.10, "uncertain", id="across-both"),
    ],
)
def test_a_case_counts_only_where_its_interval_lies_beyond_the_margin(
    low: float, high: float, outcome: str
) -> None:
    (item,) = speedups(_shared((low * high) ** 0.5, low, high))
    assert item.outcome == outcome
    assert tally([item]) == (outcome == "faster", outcome in ("equal", "uncertain"),
                             outcome == "slower")  # fmt: skip


def test_times_that_shared_no_rounds_are_uncertain() -> None:
    (item,) = speedups([_time("tritonbn", 2.0), _time("torch", 3.0)])
    assert item.interval is None and item.outcome == "uncertain"
    mean, *ends = mean_speedup([item])
    assert mean == pytest.approx(1.5) and ends == [None, None]


def test_the_interval_of_a_mean_narrows_with_the_cases() -> None:
    one = speedups(_shared(0.5, 0.45, 0.55))
    four = [item for case in "abcd" for item in speedups(_shared(0.5, 0.45, 0.55, case))]
    mean, low, high = mean_speedup(one)
    assert mean == pytest.approx(2.0)
    again, nearer, nearest = mean_speedup(four)
    assert again == pytest.approx(2.0)
    assert low is not None and high is not None and nearer is not None and nearest is not None
    assert low < nearer < 2.0 < nearest < high


def test_a_modelled_time_is_no_speed() -> None:
    rows = [replace(_time("tritonbn", 2.0), kind="modelled")]
    assert times(rows) == {}
    assert verdict(Results({"device": "cpu"}, rows))[0] == NO_SPEED


@pytest.mark.parametrize(
    ("environment", "cache", "fake"),
    [
        pytest.param({}, "cold", False, id="measured"),
        pytest.param({"timer": "fake timer: not a measurement"}, "cold", True, id="said"),
        pytest.param({}, "fake", True, id="seen-by-its-rows"),
    ],
)
def test_a_fake_timer_leads_the_verdict(
    environment: dict[str, str | int | float | bool | None], cache: str, fake: bool
) -> None:
    results = Results({**environment, "device": "cuda"}, [_time("tritonbn", 2.0, cache=cache)])
    assert is_fake(results) == fake
    assert ([*verdict(results), ""][0] == FAKE_TIMER) == fake


def test_the_copy_is_a_ceiling_and_no_rival() -> None:
    rows = [_time("tritonbn", 2.0), _time("torch", 3.0), _time("copy", 1.0)]
    assert [(item.rival, item.backend, item.ratio) for item in speedups(rows)] == [
        ("torch", "TORCH", 1.5)
    ]


def test_a_rival_without_a_figure_gives_no_ratio() -> None:
    rows = [_time("tritonbn", 2.0), replace(_time("torch", 1.0), value=None, status="failed")]
    assert speedups(rows) == []


def test_fused_cases_have_a_sentence_of_their_own() -> None:
    plain = [_time("tritonbn", 2.0), _time("torch", 1.0)]
    fused = [replace(row, case="b", fusion="relu", value=1.0) for row in plain]
    sentences = verdict(Results({"device": "cuda"}, [*plain, *fused]))
    assert sentences[0].startswith("Training: 0.50 x the speed of torch")
    assert sentences[1].startswith("Training, fused with what follows: 1.00 x the speed")


BYTES = Row("traffic", "modelled", "a", "floor", "bytes moved", value=5.0, dtype="bf16", count=50)


def test_modelled_bytes_are_summed_over_the_layers() -> None:
    rows = [
        replace(row, mode=mode)
        for row in (BYTES, replace(BYTES, case="b", value=1.0, count=3))
        for mode in ("forward_train", "backward_train")
    ]
    assert step_bytes(rows) == {
        ("bf16", "", mode, "floor"): 253.0 for mode in ("forward_train", "backward_train")
    }
    # what an interruption left out would make a step of less
    assert step_bytes(rows[:3]) == step_bytes(rows[1:]) == {}


def test_half_a_step_has_no_sentence() -> None:
    row = replace(BYTES, value=1e9, count=53)
    forward, backward = (replace(row, mode=mode) for mode in ("forward_train", "backward_train"))
    whole = verdict(Results({"device": "cpu"}, [forward, backward]))
    assert any("moves 106.00 GB (floor) in a training step" in text for text in whole)
    half = verdict(Results({"device": "cpu"}, [forward]))
    assert not any(text.startswith("Traffic") for text in half)


def test_without_a_gpu_the_first_sentence_says_that_no_speed_was_measured() -> None:
    assert verdict(Results({"device": "cpu"}))[0] == NO_SPEED


def test_a_slower_case_is_counted_in_the_verdict() -> None:
    rows = [_time("tritonbn", 2.0), _time("torch", 1.0)]
    sentence = verdict(Results({"device": "cuda"}, rows))[0]
    assert "0.50 x the speed of torch (TORCH)" in sentence
    assert sentence.endswith("slower in 1.")


ACCURACY = Row(
    "accuracy",
    "measured",
    "a",
    "tritonbn",
    "error of y",
    value=1.0,
    bound=4.0,
    dtype="fp32",
    layout="nchw",
    data="digits",
)


def test_the_verdict_names_the_result_nearest_to_its_bound() -> None:
    nearest = replace(ACCURACY, quantity="error of dx", value=3.0)
    red = replace(ACCURACY, case="b", value=9.0, status="failed")
    sentences = verdict(Results({"device": "cpu"}, [ACCURACY, nearest, red]))
    assert sentences[0] == "WRONG OR FAILED: 1 check of tritonbn is red: see failures."
    assert sentences[2] == (
        "Accuracy: 2 of 3 results keep the bound; "
        "the nearest to it reaches 75% (error of dx, fp32, nchw, digits)."
    )


@pytest.mark.parametrize(
    ("provider", "status", "code"),
    [
        pytest.param("tritonbn", "ok", 0, id="all-passed"),
        pytest.param("tritonbn", "failed", 4, id="ours-is-red"),
        pytest.param("tritonbn unfused", "failed", 4, id="ours-unfused-is-red"),
        pytest.param("tritonbn fused", "failed", 4, id="a-step-of-ours-is-red"),
        pytest.param("tritonbn + torch.compile", "failed", 4, id="ours-compiled-is-red"),
        pytest.param("torch.compile", "failed", 0, id="a-rival-cannot-run"),
        pytest.param("tritonbn", "skipped", 0, id="an-extra-is-missing"),
    ],
)
def test_only_our_own_red_check_fails_a_run(provider: str, status: str, code: int) -> None:
    assert exit_code([ACCURACY, replace(ACCURACY, provider=provider, status=status)]) == code


def test_where_the_compiler_fails_anyway_it_is_no_fault_of_ours() -> None:
    ours = replace(ACCURACY, job="endtoend", provider="tritonbn + torch.compile", status="failed")
    theirs = replace(ours, provider="torch.compile")
    assert exit_code([ours]) == 4
    assert exit_code([ours, theirs]) == 0
    assert exit_code([ours, replace(theirs, case="another")]) == 4


STEP = Row("endtoend", "measured", "a step", "tritonbn", "images per second", unit="images/s")


def test_whole_steps_are_speed_too() -> None:
    rows = [
        replace(STEP, value=2.0),
        replace(STEP, quantity="ratio to torch", unit="1", value=0.8, low=0.79, high=0.81),
    ]
    (sentence,) = verdict(Results({"device": "cuda"}, rows))
    words = "runs 1.25 x [1.23 ... 1.27] (tritonbn) as fast as with torch's layers."
    assert sentence == f"End to end: a a step {words}"
    assert verdict(Results({"device": "cuda"}, []))[0] == "No speed was measured in this run."


def test_where_all_rivals_failed_it_is_said_that_nothing_was_compared() -> None:
    rows = [_time("tritonbn", 2.0), replace(_time("torch", 1.0), value=None, status="failed")]
    sentences = verdict(Results({"device": "cuda"}, [*rows, ACCURACY]))
    assert sentences[0] == "Nothing was compared: no rival was timed beside tritonbn."


def test_each_kind_of_mode_has_a_sentence_and_none_counts_twice() -> None:
    modes = ("forward_train", "backward_train", "both_train", "forward_eval", "backward_eval")
    rows = [
        replace(_time(provider, value), mode=mode, case=mode, job="sweep")
        for mode in modes
        for provider, value in (("tritonbn", 2.0), ("torch", 3.0))
    ]
    sentences = verdict(Results({"device": "cuda"}, rows))
    assert [text.split(":")[0] for text in sentences[:3]] == [
        "Training",
        "Inference",
        "Backward with fixed statistics",
    ]
    # forward + backward is not counted again
    assert "mean of 2 cases" in sentences[0] and "mean of 1 case," in sentences[1]


def test_networks_stand_behind_the_sweep_and_are_not_mixed_with_it() -> None:
    rows = [
        replace(row, job=job)
        for job, value in (("resnet50", 8.0), ("sweep", 4.0))
        for row in (_time("tritonbn", 2.0), _time("torch", value), _time("torch.compile", value))
    ]
    sentences = verdict(Results({"device": "cuda"}, rows))
    starts = (
        "Training: 2.00 x the speed of torch (",
        "Training: 2.00 x the speed of torch.compile",
    )
    assert [text.startswith(start) for text, start in zip(sentences, starts, strict=False)] == [
        True,
        True,
    ]
    assert sentences[2].startswith("Training, ResNet-50's layers: 4.00 x the speed of torch (")
    assert not any("layers: 4.00 x the speed of torch.compile" in text for text in sentences)


def test_an_unfinished_sweep_says_so() -> None:
    cases = suite("sweep", quick=True)
    rows = [
        replace(_time(provider, 2.0), job="sweep", case=case.id)
        for case in cases
        for provider in ("tritonbn", "torch.compile")
    ]

    def unfinished(rows: list[Row], *, quick: bool = True) -> list[str]:
        sentences = verdict(Results({"device": "cuda", "quick": quick}, rows))
        return [text for text in sentences if text.startswith("UNFINISHED")]

    assert unfinished(rows) == []
    every = len(cases)
    assert unfinished(rows[:20]) == [
        f"UNFINISHED: 10 of {every} cases of the sweep were tried; go on with --resume."
    ]
    assert unfinished(rows[:-1]) == [
        f"UNFINISHED: {every} of {every} cases of the sweep were tried, torch.compile in "
        f"{every - 1}; go on with --resume."
    ]
    assert f"{every} of {len(suite('sweep'))} cases" in unfinished(rows, quick=False)[0]


def test_a_training_that_diverges_disagrees() -> None:
    gap = Row("training", "measured", "a", "tritonbn", "largest loss gap", bound=5e-3)
    red = replace(gap, status="failed", reason="not finite")
    sentences = verdict(Results({"device": "cpu"}, [red, replace(gap, step=0, quantity="loss")]))
    assert any("DISAGREE over 1 steps" in text and "gap not finite" in text for text in sentences)
    absent = replace(gap, status="skipped", reason="no digits")
    assert "Training: not compared (no digits)." in verdict(Results({"device": "cpu"}, [absent]))
