"""Groups of what is linked in pairs."""

from __future__ import annotations

from medtransfer.data.cohort.clusters import cluster_pairs


def test_clusters_are_the_connected_parts():
    assert cluster_pairs(8, [(0, 3), (3, 5), (6, 7)]) == [(0, 3, 5), (6, 7)]
    assert cluster_pairs(5, []) == []
