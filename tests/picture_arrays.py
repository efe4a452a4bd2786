"""Arrays that picture files of the tests hold."""

from __future__ import annotations

import numpy as np

GREY = np.random.default_rng(0).integers(0, 255, (32, 40), dtype=np.uint8)

COLOUR = np.random.default_rng(1).integers(0, 65535, (32, 40, 3), dtype=np.uint16)

DEEP = COLOUR[..., 0]
