"""Which files a published source consists of, by their published names unless params.yaml tells others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.config import DataParams
from pipeline.errors import DataError
from pipeline.sources.formats.val_cut import NO_CUT, ValCut
from pipeline.types import SPLITS, Split

# Published InfoSeek test rows carry no entity, so what the literature reports, and what is `test` here, is val.
PUBLISHED_ANNOTATIONS: Final[Mapping[str, Mapping[Split, str]]] = {
    "evqa": {"train": "train.csv", "val": "val.csv", "test": "test.csv"},
    "infoseek": {"train": "infoseek_train.jsonl", "test": "infoseek_val.jsonl"},
    "echosight": {"train": "train.csv", "test": "test.csv"},
}
# The first that exists is taken.
PUBLISHED_KNOWLEDGE_BASES: Final[Mapping[str, tuple[str, ...]]] = {
    "evqa": ("encyclopedic_kb_wiki.json", "encyclopedic_kb_wiki.zip"),
    "infoseek": ("Wiki6M_ver_1_0.jsonl.gz", "Wiki6M_ver_1_0.jsonl"),
    "echosight": ("wiki_100_dict_v4.json",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFiles:
    """The files of one published source.

    Attributes:
        annotations: annotation file by the split that its rows get here.
        knowledge_base: None where only an annotation file is looked at.
        data_dir: the data folder; None likewise, so that no picture is looked for.
        images_dir: folder of the pictures, relative to the data folder.
        val_cut: which training rows become val; none do where val has a file of its own.
    """

    annotations: Mapping[Split, Path]
    knowledge_base: Path | None
    data_dir: Path | None
    images_dir: str
    val_cut: ValCut = NO_CUT


def find_files(params: DataParams, data_dir: Path) -> SourceFiles:
    """Return the files that these parameters mean.

    Splits come in the order test, val, train: where two share a picture, the later one gives way.

    Raises:
        DataError: a named file is missing, or none of the published ones is there.
    """
    annotations = _find_annotations(params, data_dir)
    return SourceFiles(
        annotations=annotations,
        knowledge_base=_find_knowledge_base(params, data_dir),
        data_dir=data_dir,
        images_dir=params.images_dir,
        val_cut=_cut_val(params, annotations),
    )


def take_annotation_file(params: DataParams, path: Path) -> SourceFiles:
    """Return a source that consists of one annotation file and nothing else."""
    published = PUBLISHED_ANNOTATIONS[params.source]
    names = params.annotations or published
    beside = [split for split, name in names.items() if (path.parent / name).is_file()]
    split: Split = next((split for split, name in published.items() if name == path.name), "test")
    return SourceFiles(
        annotations={split: path},
        knowledge_base=None,
        data_dir=None,
        images_dir=params.images_dir,
        val_cut=_cut_val(params, beside),
    )


def _cut_val(params: DataParams, annotations: Collection[Split]) -> ValCut:
    return NO_CUT if "val" in annotations else ValCut(params.val_share, params.val_seed)


def _find_annotations(params: DataParams, data_dir: Path) -> dict[Split, Path]:
    names = params.annotations or PUBLISHED_ANNOTATIONS[params.source]
    found = {split: data_dir / names[split] for split in reversed(SPLITS) if split in names}
    if not params.annotations:
        found = {split: path for split, path in found.items() if path.is_file()}
        if not found:
            wanted = ", ".join(names.values())
            raise DataError(f"holds none of the annotation files of {params.source}: {wanted}", path=data_dir)
    for path in found.values():
        if not path.is_file():
            raise DataError("is missing", path=path)
    return found


def _find_knowledge_base(params: DataParams, data_dir: Path) -> Path:
    names = (params.knowledge_base,) if params.knowledge_base else PUBLISHED_KNOWLEDGE_BASES[params.source]
    path = next((data_dir / name for name in names if (data_dir / name).is_file()), None)
    if path is None:
        raise DataError(f"holds no knowledge base of {params.source}: {' or '.join(names)}", path=data_dir)
    return path
