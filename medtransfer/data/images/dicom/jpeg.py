"""A decoder for pydicom: 12-bit and lossless JPEG through imagecodecs (libjpeg-turbo).

JPEG lossless is what many archives store, and neither Pillow nor another permissive plugin of
pydicom reads it; python-gdcm does, but refuses 12-bit JPEG. See pydicom's guide "Creating decoding
plugins".
"""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
from pydicom.pixels.decoders.base import (
    JPEGExtended12BitDecoder,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
)

_DECODERS = (JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder)
# Asked for by pydicom: what the plugin needs, per transfer syntax.
DECODER_DEPENDENCIES = {decoder.UID: ("imagecodecs",) for decoder in _DECODERS}
_NAME = "imagecodecs"


def is_available(uid: str) -> bool:
    """Asked by pydicom: True for the transfer syntaxes decoded here."""
    return uid in DECODER_DEPENDENCIES


def register() -> None:
    """Makes the decoder known to pydicom; once is enough."""
    for decoder in _DECODERS:
        if _NAME not in decoder.available_plugins:
            decoder.add_plugin(_NAME, (__name__, "decode_frame"))


def decode_frame(source: bytes, runner: Any) -> bytes:
    """One frame. The colours are left as stored: pydicom converts them."""
    colour = "RGB" if runner.samples_per_pixel == 3 else None
    array = imagecodecs.jpeg_decode(source, colorspace=colour, outcolorspace=colour)
    runner.set_option("bits_allocated", 8 * array.dtype.itemsize)
    if runner.samples_per_pixel == 3:
        runner.set_option("planar_configuration", 0)
    return bytes(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
