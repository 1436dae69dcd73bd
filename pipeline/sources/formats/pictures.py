"""Picture ids -> files, by the published rules, and the count of what was needed, found and missing.

| pictures | file under `data.images_dir` |
|---|---|
| Google Landmarks v2 (train) | `landmarks/a/b/c/<id>.jpg`, by the id's first three characters |
| iNaturalist 2021 | `inaturalist/` + the path that `inaturalist/{train,val}_id2name.json` gives |
| OVEN | `oven_images/<first two digits>/<id>`, or `oven_images/<id>` (EchoSight's), whatever the ending |
| Wiki6M infobox | `wikipedia_images_full/<QID[:4]>/<QID>.jpg` |
| encyclopedia (ours) | `knowledge_base/<host>/<path>` of the URL, as `wget --force-directories` lays it out |
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from pipeline.core.inputs.texts import is_one_line
from pipeline.errors import DataError
from pipeline.sources.formats.streams import read_json_entries
from pipeline.workspace import is_plain_relative

# The published ones first: where there is no file, its name is the one that is listed as needed.
OVEN_SUFFIXES: Final = (".jpg", ".JPEG", ".png", ".jpeg", ".JPG", ".PNG", ".webp", ".WEBP")
STATES: Final = ("needed", "found", "missing", "unresolved", "unusable")
MAX_UNUSABLE_NAMED: Final = 20
MAX_NAME_BYTES: Final = 255

_IDS: Final = {
    "landmarks": re.compile(r"[0-9A-Za-z_-]{3,64}"),  # the first three name the folders
    "inaturalist": re.compile(r"[0-9A-Za-z_-]{1,64}"),  # numbers, from 0 on
    "infoseek": re.compile(r"oven_\d{8}"),
}

State = Literal["found", "missing", "unresolved"]


class ImageCensus:
    """Counts pictures by data set; remembers which files the queries need."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._counted: set[tuple[str, str]] = set()
        self._needed: dict[str, str] = {}
        self._document_dataset = ""
        self._unusable: dict[str, str] = {}

    def count_query(self, dataset: str, image_id: str, state: State, path: str | None) -> None:
        """Count a query's picture, once however many queries share it; `path` is None if the id has no file name."""
        if (dataset, image_id) not in self._counted:
            self._counted.add((dataset, image_id))
            self._count(dataset, state)
        if path is not None:
            self._needed[path] = dataset

    def count_document(self, dataset: str, state: State) -> None:
        """Count one picture of a document; those of one source are all of one data set."""
        self._document_dataset = dataset
        self._count(dataset, state)

    def count_unusable(self, path: str, why: str) -> None:
        """Count a file that was found as one that cannot be used; the first such files are remembered by name."""
        counts = self._counts[self._needed.get(path, self._document_dataset)]
        counts.subtract(("found",))
        counts.update(("unusable",))
        if len(self._unusable) < MAX_UNUSABLE_NAMED:
            self._unusable[path] = why

    def name_unusable(self) -> dict[str, str]:
        """Return why the first files that cannot be used cannot."""
        return dict(self._unusable)

    def list_needed(self) -> list[str]:
        """Return the files that the queries need, sorted; relative to the data folder."""
        return sorted(self._needed)

    def summarise(self) -> dict[str, dict[str, int]]:
        """Return needed, found, missing, unresolved and unusable pictures by data set."""
        return {dataset: {state: counts[state] for state in STATES} for dataset, counts in sorted(self._counts.items())}

    def _count(self, dataset: str, state: State) -> None:
        self._counts.setdefault(dataset, Counter()).update(("needed", state))


class PictureFinder:
    """Turns ids into paths relative to the data folder and counts what it finds.

    Args:
        data_dir: the data folder; None where only an annotation file is at hand, so that no picture can be
            looked for and each counts as unresolved.
        images_dir: the pictures' folder inside it.
    """

    def __init__(self, data_dir: Path | None, images_dir: str) -> None:
        self._data_dir = data_dir
        self._images_dir = PurePosixPath(images_dir)
        self._names: dict[str, Mapping[str, str]] = {}
        self._folders: dict[str, bool] = {}
        self.census = ImageCensus()

    def load_inaturalist_names(self, split: str, wanted_ids: Collection[str]) -> None:
        """Read where these iNaturalist pictures lie; the map is streamed, for it names millions.

        Raises:
            DataError: the map is there but no JSON object, or names two files for one of them.
        """
        path = self._names_path(split)
        if path is None or not wanted_ids or not path.is_file():
            self._names[split] = {}
            return
        names: dict[str, str] = {}
        for number, key, value in read_json_entries(path):
            if key in wanted_ids and isinstance(value, str) and names.setdefault(key, value) != value:
                raise DataError(f"names two files for {key}: {names[key]} and {value}", path=path, row=number)
        self._names[split] = names

    def find_query_picture(self, dataset: str, image_id: str, *, inaturalist_split: str) -> str:
        """Return where the picture of a query lies or should lie; a missing file is for others to notice.

        Args:
            dataset: landmarks, inaturalist or infoseek (OVEN).
            image_id: the published id.
            inaturalist_split: train or val, whichever map holds the id.

        Raises:
            ValueError: the id is no such id.
            LookupError: the id has no file name; the text says why.
        """
        if not _IDS[dataset].fullmatch(image_id):
            raise ValueError(f"{image_id!r} is no image id of {dataset}")
        if dataset == "inaturalist" and self._data_dir is None:
            self.census.count_query(dataset, image_id, "unresolved", None)
            return str(self._images_dir / "inaturalist" / image_id)
        if dataset == "inaturalist":
            names = self._name_inaturalist(inaturalist_split, image_id)
        elif dataset == "landmarks":
            names = [f"landmarks/{image_id[0]}/{image_id[1]}/{image_id[2]}/{image_id}.jpg"]
        else:
            number = image_id.removeprefix("oven_")
            folders = (f"oven_images/{number[:2]}", "oven_images")
            names = [f"{folder}/{image_id}{suffix}" for folder in folders for suffix in OVEN_SUFFIXES]
        paths = [str(self._images_dir / name) for name in names]
        found = next((path for path in paths if self._is_file(path)), None)
        state: State = "found" if found else "unresolved" if self._data_dir is None else "missing"
        self.census.count_query(dataset, image_id, state, found or paths[0])
        return found or paths[0]

    def find_infobox_picture(self, entity_id: str) -> tuple[str, ...]:
        """Return the infobox picture of a Wikidata entity, or nothing where there is no file."""
        return self._find_document_picture("infobox", [f"wikipedia_images_full/{entity_id[:4]}/{entity_id}.jpg"])

    def find_encyclopedia_picture(self, url: str) -> tuple[str, ...]:
        """Return the file of a picture of an encyclopedia entry, or nothing where there is none."""
        return self._find_document_picture("knowledge_base", _name_encyclopedia_picture(url))

    def _find_document_picture(self, dataset: str, names: list[str]) -> tuple[str, ...]:
        folder = str(self._images_dir / dataset) if dataset == "knowledge_base" else str(self._images_dir)
        if folder not in self._folders:
            self._folders[folder] = self._data_dir is not None and (self._data_dir / folder).is_dir()
        paths = (str(self._images_dir / name) for name in names) if self._folders[folder] else iter(())
        found = next((path for path in paths if self._is_file(path)), None)
        self.census.count_document(dataset, "found" if found else "missing")
        return (found,) if found else ()

    def _name_inaturalist(self, split: str, image_id: str) -> list[str]:
        name = self._names[split].get(image_id)
        if name is not None and _is_safe(name):
            return [f"inaturalist/{name}"]
        self.census.count_query("inaturalist", image_id, "unresolved", None)
        path = self._names_path(split)
        file = f"{split}_id2name.json"
        why = "is missing" if path is None or not path.is_file() else "gives an unsafe path" if name else "lacks it"
        raise LookupError(f"inaturalist image {image_id} has no file name: {file} {why}")

    def _names_path(self, split: str) -> Path | None:
        if self._data_dir is None:
            return None
        return self._data_dir / self._images_dir / "inaturalist" / f"{split}_id2name.json"

    def _is_file(self, path: str) -> bool:
        return self._data_dir is not None and (self._data_dir / path).is_file()


def _name_encyclopedia_picture(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL, so a picture without a file
        return []
    raw = f"knowledge_base/{parts.netloc}{parts.path}"
    return [name for name in dict.fromkeys((unquote(raw), raw)) if _is_safe(name)] if parts.netloc else []


def _is_safe(name: str) -> bool:
    parts = PurePosixPath(name).parts
    short = all(len(part.encode("utf-8", "surrogateescape")) <= MAX_NAME_BYTES for part in parts)
    return short and is_plain_relative(name) and is_one_line(name)
