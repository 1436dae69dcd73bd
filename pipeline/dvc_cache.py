"""Where DVC keeps the content of data/: links into it are data too, though they lead out of the checkout."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path


@lru_cache
def find_dvc_cache(data_dir: Path) -> Path | None:
    """Return the folder that DVC keeps the content of a data folder in; None where DVC does not look after it.

    Args:
        data_dir: `data/` of a checkout, absolute.
    """
    dvc_dir = data_dir.parent / ".dvc"
    if not dvc_dir.is_dir():
        return None
    from dvc.config import Config, ConfigError

    try:
        named = Config(str(dvc_dir))["cache"].get("dir")
    except ConfigError:
        return None
    return (Path(named) if named else dvc_dir / "cache").resolve()
