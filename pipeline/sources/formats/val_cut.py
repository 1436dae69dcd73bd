"""A val split where none is published: training queries of some entities, all of each, become val.

Whole entities are taken, since a question about an entity seen in training says little of entities that are not. Which
ones is decided by a hash of the entity alone: rows stream through, nothing is held, and neither the order of the rows
nor rows that come later change where an entity lies.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from pipeline.types import Split

_DIGEST_BYTES: Final = 8
_NUM_DIGESTS: Final = 256**_DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class ValCut:
    """Which entities of the training rows are val's.

    Attributes:
        share: of the entities, in [0, 1]; 0 takes none.
        seed: another seed takes others.
    """

    share: float
    seed: int

    def place(self, split: Split, entity: str) -> Split:
        """Return the split of a row about an entity; only training rows ever move.

        Args:
            split: that of the file the row stands in.
            entity: id of its one relevant document.
        """
        return "val" if split == "train" and self._takes(entity) else split

    def _takes(self, entity: str) -> bool:
        # Spread evenly over [0, 1): a cryptographic hash has no pattern that ids, which are dealt in order, could meet.
        digest = hashlib.blake2b(f"{self.seed}\n{entity}".encode(), digest_size=_DIGEST_BYTES).digest()
        return int.from_bytes(digest, "big") / _NUM_DIGESTS < self.share


NO_CUT: Final = ValCut(0.0, 0)
