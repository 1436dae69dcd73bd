"""The GroceryStoreDataset as it lies on disk (Klasson et al., 2019): products, and photos taken in shops.

classes.csv                   product, its number, its group, iconic picture and description
train.txt, val.txt            photo, number of its product, number of its group
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image

from pipeline.errors import DataError
from pipeline.files.images import load_upright
from pipeline.workspace import is_plain_relative

Share = Literal["models", "train", "val", "test"]

# Of train.txt's photos of each product; val.txt's are the test photos. Photos that documents show, or that taught the
# base policy, would be too easy as queries, so "models" shares none with the others.
MODELS_SHARE: Final = 0.55
VAL_SHARE: Final = 0.10
_COLUMNS: Final = 6
_MAX_PIXELS: Final = 50_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """An entry of the catalogue: `group` is what a shopper calls it, such as "pear" or "oat milk"."""

    number: int
    title: str
    group: str
    description: str
    iconic_path: Path

    @property
    def doc_id(self) -> str:
        """Identifier of its document."""
        return f"product-{self.number:02d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """A phone photo of one product on its shelf."""

    path: Path
    product: Product


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """Products by their number, and the photos of each share; no photo is in two shares."""

    products: tuple[Product, ...]
    photos: Mapping[Share, tuple[Photo, ...]]

    @property
    def groups(self) -> list[str]:
        """Every product group once, sorted."""
        return sorted({product.group for product in self.products})


def read_catalogue(folder: Path, seed: int) -> Catalogue:
    """Read the data set and deal its photos out.

    Args:
        folder: holds classes.csv, train.txt and val.txt.
        seed: which of a product's photos go to which share.

    Raises:
        DataError: a file is missing or a row is not as it should be.
    """
    products = tuple(_read_products(folder))
    by_number = {product.number: product for product in products}
    photos: dict[Share, list[Photo]] = {"models": [], "train": [], "val": [], "test": []}
    photos["test"] = list(_read_photos(folder, "val.txt", by_number))
    rng = np.random.default_rng((seed, 1))
    of_product: dict[int, list[Photo]] = {product.number: [] for product in products}
    for photo in _read_photos(folder, "train.txt", by_number):
        of_product[photo.product.number].append(photo)
    for found in of_product.values():
        dealt = [found[int(row)] for row in rng.permutation(len(found))]
        for_models, for_val = round(MODELS_SHARE * len(found)), round(VAL_SHARE * len(found))
        photos["models"] += dealt[:for_models]
        photos["val"] += dealt[for_models : for_models + for_val]
        photos["train"] += dealt[for_models + for_val :]
    for share, dealt in photos.items():
        if not dealt:
            raise DataError(f"holds too few photos: none is left for {share}", path=folder / "train.txt")
    return Catalogue(products=products, photos={share: tuple(dealt) for share, dealt in photos.items()})


def open_picture(path: Path) -> Image.Image:
    """Return a picture, upright and RGB.

    Raises:
        ImageError: it cannot be read.
    """
    return load_upright(path, max_pixels=_MAX_PIXELS, root=path.parent)


def _read_products(folder: Path) -> Iterator[Product]:
    path = folder / "classes.csv"
    seen: set[int] = set()
    for row, cells in _read_rows(path, header=True):
        if len(cells) != _COLUMNS or not cells[1].isdecimal():
            raise DataError(f"needs {_COLUMNS} cells with the product's number in the second", path=path, row=row)
        name, number, group, _, iconic, description = cells
        if int(number) in seen:
            raise DataError(f"product {number} is there twice", path=path, row=row)
        seen.add(int(number))
        yield Product(
            number=int(number),
            title=name.replace("-", " "),
            group=group.replace("-", " ").lower(),
            description=_resolve(folder, description, path, row).read_text(encoding="utf-8").strip(),
            iconic_path=_resolve(folder, iconic, path, row),
        )


def _read_photos(folder: Path, name: str, products: Mapping[int, Product]) -> Iterator[Photo]:
    path = folder / name
    for row, cells in _read_rows(path, header=False):
        if len(cells) < 2 or not cells[1].isdecimal() or int(cells[1]) not in products:
            raise DataError("needs a photo and the number of a product of classes.csv", path=path, row=row)
        yield Photo(path=_resolve(folder, cells[0], path, row), product=products[int(cells[1])])


def _read_rows(path: Path, *, header: bool) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row, cells in enumerate(csv.reader(file), 1):
                if cells and not (header and row == 1):
                    yield row, [cell.strip() for cell in cells]
    except FileNotFoundError as error:
        raise DataError("is missing; PATH must be the folder of the GroceryStoreDataset", path=path) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", path=path) from error


def _resolve(folder: Path, name: str, path: Path, row: int) -> Path:
    inside = name.lstrip("/")
    if not is_plain_relative(inside):
        raise DataError(f"{name}: leads out of the folder", path=path, row=row)
    if not (folder / inside).is_file():
        raise DataError(f"{name}: no such file", path=path, row=row)
    return folder / inside
