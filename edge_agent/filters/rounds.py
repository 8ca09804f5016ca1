"""Frames in which a series may occur several times, made ready for vectorised filters that take each once."""

import numpy as np
from numpy.typing import NDArray


def rounds(series: NDArray[np.int32]) -> list[NDArray[np.intp]]:
    """Split positions into rounds in which no series occurs twice, keeping each series' order.

    A poll gives one round; a subscription's burst of k changes of one tag gives k.
    """
    order = np.argsort(series, kind="stable")
    ordered = series[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if ordered.size else np.empty(0, np.intp)
    if starts.size == ordered.size:
        return [np.arange(series.size)]
    occurrence = np.arange(ordered.size) - np.repeat(starts, np.diff(np.r_[starts, ordered.size]))
    return [np.sort(order[occurrence == k]) for k in range(int(occurrence.max()) + 1)]
