"""YAML files of parameters: one mapping, in which no name stands twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from pipeline.errors import ConfigError

_BOOL: Final = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """Reads what DVC reads: a name that stands twice is refused, and `on` and `off` are words (YAML 1.2).

    PyYAML would take the last of equal names in silence, and `on`, `off`, `yes` and `no` for truth values.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 - as PyYAML has it
        """Return a mapping as it is written: `<<` has not brought in others yet, which its names may override."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first_rows: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            row = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in first_rows:
                raise _DuplicateKeyError(key.value, row, first_rows[key.tag, key.value])
            if isinstance(key, yaml.ScalarNode):
                first_rows[key.tag, key.value] = row
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _DuplicateKeyError(Exception):
    def __init__(self, key: str, row: int, first_row: int) -> None:
        super().__init__(f"line {row}: `{key}` stands there again, first in line {first_row}; remove one")


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        ConfigError: the file is missing, no YAML, holds something else, or a name stands twice in one mapping.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except _DuplicateKeyError as error:
        raise ConfigError(f"{path}: {error}") from error
    # ValueError: a number of thousands of digits, a date that is none.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of sections")
    return raw
