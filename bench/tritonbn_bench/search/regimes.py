"""The cases of a search, and the regimes of the plan table in which they lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tritonbn_kernels.activation_names import side_of
from tritonbn_kernels.layout import ChannelView
from tritonbn_kernels.plan_file import Regime, fused_name, regime_of

from ..cases import Case, network_cases, resnet50_cases, suite
from ..plan_table import view_in

__all__ = ["SUITES", "cases_named", "grouped", "regime_of_case", "views_of"]

SUITES = ("quick", "resnet50", "sweep", "networks")


def cases_named(name: str) -> tuple[Case, ...]:
    """The cases that a command line names.

    Args:
        name: one of SUITES, "model:NETWORK" with a key of `networks.NETWORKS`, or
            "model:package.module:function" as `model_layers.load_model` takes it

    Raises:
        ValueError: nothing is named so, or the model cannot be had or run
    """
    if name == "quick":
        return resnet50_cases(dtypes=("bf16",))
    if name in SUITES:
        return suite(name)
    kind, _, which = name.partition(":")
    if kind != "model" or not which:
        raise ValueError(
            f"expected cases of {', '.join(SUITES)}, model:NETWORK or "
            f"model:package.module:function, got {name!r}"
        )
    return _of_model(which) if ":" in which else _of_network(which)


def _of_network(name: str) -> tuple[Case, ...]:
    from ..networks import NETWORKS

    if name not in NETWORKS:
        raise ValueError(f"expected a network of {', '.join(NETWORKS)}, got {name!r}")
    title = NETWORKS[name].name
    return tuple(case for case in network_cases() if f"{title}: " in case.origin)


def _of_model(spec: str) -> tuple[Case, ...]:
    from ..model_layers import cases_of, layers_of, load_model

    return cases_of(layers_of(*load_model(spec)), origin=spec)


def views_of(case: Case) -> tuple[ChannelView, ...]:
    """Views of the tensors that the call reads and writes: x, y forward, dy, x, dx backward."""
    return (view_in(case.shape, case.layout),) * (2 if case.mode.startswith("forward") else 3)


def regime_of_case(case: Case) -> Regime:
    """Where the package looks for a row for this case."""
    activation, residual = case.fused.activation, case.fused.residual
    forward = case.mode.startswith("forward")
    beside = residual if forward else bool(side_of(activation, residual))
    return regime_of(case.mode, views_of(case), case.itemsize, fused_name(activation, beside))


def grouped(cases: Iterable[Case], modes: Sequence[str]) -> dict[Regime, tuple[Case, ...]]:
    """Cases by regime, regimes in the order of their first cases.

    Args:
        cases: those of other modes are left out, and those with data of their own, on which no
            time depends
        modes: of `traffic.MODES`
    """
    found: dict[Regime, dict[str, Case]] = {}
    for case in cases:
        if case.mode in modes and case.data == "normal":
            found.setdefault(regime_of_case(case), {}).setdefault(case.id, case)
    return {regime: tuple(members.values()) for regime, members in found.items()}
