"""How the rows of a group are made to open.

Shapes: N rows, of one process or of all, in whole groups; G rows of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.core.advantage import FULL, MALFORMED, REGION

Arm = Literal["region", "full", "free"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Which rows of a group are made to open how; the rest are free."""

    group_size: int
    num_region: int
    num_full: int

    @property
    def is_balanced(self) -> bool:
        """Whether both arms are forced; config.py lets nobody force only one."""
        return self.num_region > 0 and self.num_full > 0

    def get_arm(self, position: int) -> Arm:
        """Return the arm of a row by its global position; groups lie one after another."""
        row = position % self.group_size
        if row < self.num_region:
            return "region"
        return "full" if row < self.num_region + self.num_full else "free"

    def list_codes(self) -> IntArray:
        """Return the code of the arm that each row of a group is made to open, (G,): MALFORMED for neither."""
        num_free = self.group_size - self.num_region - self.num_full
        return np.repeat([REGION, FULL, MALFORMED], [self.num_region, self.num_full, num_free])

    def list_arm_rows(self, num_rows: int) -> list[int]:
        """Return the first row of every group that is made to open REGION and the first made to open FULL, in turn.

        Free rows may spell an opening in other tokens; forced rows have those that SFT taught.

        Args:
            num_rows: N.
        """
        return [group + row for group in range(0, num_rows, self.group_size) for row in (0, self.num_region)]
