"""An empty picture, and words that pictures share. Agg, no window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MODES", "blank"]

MODES = {
    "forward_train": "training forward",
    "backward_train": "training backward",
    "forward_eval": "eval forward",
    "backward_eval": "eval backward",
    "both_train": "training forward + backward",
}


def blank(columns: int, rows: int, width: float, height: float) -> tuple[Figure, Any]:
    """A figure and its panels, `(rows, columns)`; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)
