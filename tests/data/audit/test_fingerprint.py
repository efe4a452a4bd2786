"""What a cohort is, in numbers."""

from __future__ import annotations

import medtransfer as mt


def test_fingerprint_counts_patients_and_sizes(manifest):
    path = manifest(patients=7, views=2)
    found = mt.fingerprint(mt.Cohort.from_csv(path, path.parent, ["malignant"]))
    assert found.patients_per_class == {"0": 4, "1": 3}
    assert found.images_per_class == {"0": 8, "1": 6}
    assert (found.shape, found.spacing) == (((40, 40, 40), (48, 48, 48)), ())
    assert (found.domain, found.smallest_class, found.ndim) == ("far", 3, 2)
