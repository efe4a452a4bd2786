"""Intensity windows: which range of values becomes 0..1."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import ConfigError

Preset = Literal["lung", "brain", "soft_tissue", "bone"]
Single = Literal["percentile", "full", "from_header"] | Preset | tuple[float, float]
# Three windows make the three channels of a grey image.
Window = Single | tuple[Single, Single, Single]

# Center and width in HU, as radiologists read CT.
PRESETS: dict[str, tuple[float, float]] = {
    "lung": (-600.0, 1500.0),
    "brain": (40.0, 80.0),
    "soft_tissue": (40.0, 400.0),
    "bone": (400.0, 1800.0),
}
_NAMES = ("percentile", "full", "from_header", *PRESETS)


def parse_window(value: object) -> Window:
    """A window as users write it: a name, [center, width], or a list of three of these.

    Raises:
        ConfigError: neither of them, or a width that is not above 0.
    """
    if isinstance(value, str) and value in _NAMES:
        return value  # type: ignore[return-value]  # one of the names
    if isinstance(value, (list, tuple)):
        if len(value) == 2 and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v)
            for v in value
        ):
            center, width = float(value[0]), float(value[1])
            if not width > 0:
                raise ConfigError(f"the window width must be above 0, not {width:g}")
            return center, width
        if len(value) == 3 and not any(
            isinstance(v, (int, float)) or (isinstance(v, (list, tuple)) and len(v) != 2)
            for v in value
        ):
            return tuple(parse_window(v) for v in value)  # type: ignore[return-value]  # three of them
    raise ConfigError(
        f"window {value!r}: use {', '.join(_NAMES)}, [center, width], or a list of three of these"
    )


def needs_header(window: Window) -> bool:
    """True where a window of the file's own header is asked for."""
    return window == "from_header" or (isinstance(window, tuple) and "from_header" in window)


def uses_preset(window: Window) -> bool:
    """True where a window is in HU, which only CT has."""
    return (isinstance(window, str) and window in PRESETS) or (
        isinstance(window, tuple) and any(uses_preset(w) for w in window if isinstance(w, str))
    )


def scale(array: NDArray[np.float32], window: Single) -> NDArray[np.float32]:
    """Values to 0..1, clipped.

    Args:
        array: any shape, in the units of the file.
        window: percentile (0.5 to 99.5 % of the image; its full range where these coincide, as in a
            small bright spot on black), full (minimum to maximum), a preset, or (center, width).
    """
    if window == "percentile":
        low, high = (float(v) for v in np.percentile(array, [0.5, 99.5]))
        if not high > low:
            low, high = float(array.min()), float(array.max())
    elif window == "full":
        low, high = float(array.min()), float(array.max())
    else:
        center, width = PRESETS[window] if isinstance(window, str) else window
        low, high = center - width / 2, center + width / 2
    if not high > low:
        return np.zeros_like(array)
    result: NDArray[np.float32] = np.clip(
        (array - np.float32(low)) / np.float32(high - low), 0.0, 1.0
    )
    return result
