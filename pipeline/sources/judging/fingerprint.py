"""What a picture looks like in a few bytes, so that the same picture is known again in other bytes."""

from __future__ import annotations

from typing import Final

import imagehash
import numpy as np
from PIL import Image

from pipeline.core.inputs.lookalikes import COLOUR_GRID, NO_STRUCTURE, Fingerprint

_SMALL_PX: Final = 64
_PLAIN_RANGE: Final = 4


def compute_fingerprint(image: Image.Image) -> Fingerprint:
    """Return the fingerprint of an upright RGB picture.

    Everything is read off one small copy: the large picture is averaged in whole pixels first (`reducing_gap`), which
    costs a fraction of decoding it.
    """
    small = image.resize((_SMALL_PX, _SMALL_PX), Image.Resampling.LANCZOS, reducing_gap=2.0)
    colours = small.resize((COLOUR_GRID, COLOUR_GRID), Image.Resampling.BOX).tobytes()
    if np.ptp(np.asarray(small.convert("L"))) <= _PLAIN_RANGE:
        # The hash compares frequencies with their median; a plain picture has only rounding to compare.
        return Fingerprint(NO_STRUCTURE, colours)
    return Fingerprint(int(str(imagehash.phash(small)), 16), colours)
