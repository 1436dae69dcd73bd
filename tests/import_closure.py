"""What a module of `pipeline` may run, read from its source: imports inside functions count, those for types do not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def find_closure(*roots: str) -> dict[str, Path]:
    """Return the modules that `roots` import, they and their packages included, with their files."""
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = _find_file(name)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += [*_list_packages(name), *_list_imports(name, path)]
    return found


def has_code(path: Path) -> bool:
    """Return whether a file says more than its docstring."""
    return any(not isinstance(node, ast.Expr) for node in _parse(path).body)


def list_sections(path: Path, sections: frozenset[str]) -> set[str]:
    """Return the sections of params.yaml that a file reads from what it calls `params`, a whole `Params`."""
    found: set[str] = set()
    for function in ast.walk(_parse(path)):
        if not isinstance(function, ast.FunctionDef):
            continue
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        whole = {a.arg for a in arguments if isinstance(a.annotation, ast.Name) and a.annotation.id == "Params"}
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole:
                found |= {node.attr.rstrip("_")} & sections
    return found


def _list_packages(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _list_imports(name: str, path: Path) -> Iterator[str]:
    tree = _parse(path)
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative name"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # a name may be a module


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _find_file(name: str) -> Path | None:
    """Return the file of a module of `pipeline`; None for any other name."""
    place = CHECKOUT.joinpath(*name.split("."))
    if name.split(".")[0] != "pipeline":
        return None
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)
