"""Seeds that follow from another seed and a name, so that nothing drawn depends on the order of drawing."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, name: str | int) -> int:
    """Return a seed, 0 to 2**64 - 1, that a seed and a name decide alone.

    >>> derive_seed(7, "q1") == derive_seed(7, "q1") != derive_seed(7, "q2")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
