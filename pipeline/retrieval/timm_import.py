"""timm, opened where torchvision is and where it is not.

timm asks torchvision for one layer's class and for the transforms of its training, none of which a frozen encoder uses.
PyPI's torchvision is built for CUDA: beside a CPU's torch it cannot be imported, and transformers, which imports it
wherever it is installed, cannot either. So timm may be installed without what it depends on (`pip install --no-deps
timm`), and placeholders stand in for torchvision while it is imported.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final
from unittest.mock import MagicMock

from torch import nn

_IMPORTED_BY_TIMM: Final = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)


class FrozenBatchNorm2d(nn.Module):
    """Stands for torchvision's class of this name, by which timm tells layers apart; there is none of it."""


@cache
def import_timm() -> Any:  # noqa: ANN401 - a module without types
    """Return timm's module.

    Raises:
        ImportError: it is not installed.
    """
    if find_spec("torchvision") is not None:
        return import_module("timm")
    placeholders = {name: MagicMock(name=name) for name in _IMPORTED_BY_TIMM}
    placeholders["torchvision.ops.misc"].FrozenBatchNorm2d = FrozenBatchNorm2d
    sys.modules.update(placeholders)
    try:
        return import_module("timm")
    finally:
        # Others ask whether torchvision is there, and must hear that it is not.
        for name in placeholders:
            del sys.modules[name]
