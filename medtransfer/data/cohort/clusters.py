"""Groups of what is linked in pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def cluster_pairs(count: int, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Groups of two or more of `count` items that are linked by pairs, directly or through
    others.
    """
    if not pairs:
        return []
    first, second = np.array(pairs, dtype=int).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for item in np.unique(np.concatenate([first, second])):
        groups.setdefault(int(label[item]), []).append(int(item))
    return sorted(tuple(group) for group in groups.values())
