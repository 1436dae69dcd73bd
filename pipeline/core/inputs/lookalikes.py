"""Pictures of different splits that show the same: fingerprints a few bits apart, found without comparing all pairs.

A fingerprint has two halves. `structure` is a perceptual hash of 64 bits, which a picture keeps when it is encoded anew
or resized; but it is blind to colour, and a plain picture has none. `colours` are the mean colours of a 4 x 4 grid,
which tell apart what is drawn alike in other colours. Two pictures look alike where both halves are close.

Hashes at most `MAX_BITS` apart are found by their bands (multi-index hashing; Norouzi, Punjani and Fleet, 2012): cut
into one band more than bits that may differ, two such hashes must agree in a whole band. So only pictures that share a
band are compared. For a and b pictures in two splits that is about NUM_BANDS x a x b / 2^13 comparisons where hashes
are spread evenly, and a x b in the worst case, where all are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

MAX_BITS: Final = 4
MAX_COLOUR: Final = 12
"""Largest difference of one mean colour in one cell, of 255."""
NO_STRUCTURE: Final = 0
"""`structure` of a plain picture. No other has it: a perceptual hash sets about half of its bits."""
COLOUR_GRID: Final = 4

_NUM_BITS: Final = 64
NUM_BANDS: Final = MAX_BITS + 1
_CHUNK_PAIRS: Final = 1_000_000

I64 = npt.NDArray[np.int64]


class Fingerprint(NamedTuple):
    """What a picture looks like, in a few bytes.

    Attributes:
        structure: 64 bits.
        colours: RGB of each cell of the grid, row by row; 48 bytes.
    """

    structure: int
    colours: bytes


def find_lookalikes(fingerprints: Sequence[Fingerprint], splits: Sequence[str]) -> list[tuple[int, int]]:
    """Return the places of pictures that look alike and lie in different splits, each pair once, in order.

    Args:
        fingerprints: of the pictures.
        splits: of the same pictures.
    """
    structure_N = np.array([fingerprint.structure for fingerprint in fingerprints], dtype=np.uint64)
    colours = b"".join(fingerprint.colours for fingerprint in fingerprints)
    colour_NC = np.frombuffer(colours, dtype=np.uint8).reshape(len(fingerprints), 3 * COLOUR_GRID**2)
    split_N = np.array(splits, dtype=np.str_)
    found: set[tuple[int, int]] = set()
    for key_N in _cut_bands(structure_N):
        for one, other in combinations(sorted(set(splits)), 2):
            for i_P, j_P in _pair_up(key_N, np.flatnonzero(split_N == one), np.flatnonzero(split_N == other)):
                alike_P = _look_alike(structure_N, colour_NC, i_P, j_P)
                found.update(zip(i_P[alike_P].tolist(), j_P[alike_P].tolist(), strict=True))
    return sorted((min(pair), max(pair)) for pair in found)


def _cut_bands(structure_N: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.uint64]]:
    edges = np.linspace(0, _NUM_BITS, NUM_BANDS + 1).astype(int).tolist()
    for low, high in pairwise(edges):
        yield (structure_N >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)


def _pair_up(key_N: npt.NDArray[np.uint64], one_A: I64, other_B: I64) -> Iterator[tuple[I64, I64]]:
    """Yield the pairs of equal key, one from each side, as two aligned arrays of places, a bounded number at a time."""
    sorted_A = one_A[np.argsort(key_N[one_A], kind="stable")]
    left_B = np.searchsorted(key_N[sorted_A], key_N[other_B], side="left")
    num_B = np.searchsorted(key_N[sorted_A], key_N[other_B], side="right") - left_B
    chunk_B = np.cumsum(num_B) // _CHUNK_PAIRS
    for chunk in np.unique(chunk_B):
        rows = chunk_B == chunk
        left, num = left_B[rows], num_B[rows]
        # For each row of this side, the run of places left, left + 1, ... of the other.
        run_P = np.arange(num.sum()) - np.repeat(np.cumsum(num) - num, num)
        yield sorted_A[np.repeat(left, num) + run_P], np.repeat(other_B[rows], num)


def _look_alike(
    structure_N: npt.NDArray[np.uint64], colour_NC: npt.NDArray[np.uint8], i_P: I64, j_P: I64
) -> npt.NDArray[np.bool_]:
    alike_P: npt.NDArray[np.bool_] = np.bitwise_count(structure_N[i_P] ^ structure_N[j_P]) <= MAX_BITS
    # Colours are many bytes and few pairs are left: they are looked at last.
    left_P = np.flatnonzero(alike_P)
    i_L, j_L = i_P[left_P], j_P[left_P]
    apart_L = np.abs(colour_NC[i_L].astype(np.int16) - colour_NC[j_L]).max(axis=1, initial=0)
    # Nothing but its colour tells a plain picture from another, so that one has to be the same.
    is_plain_L = (structure_N[i_L] == NO_STRUCTURE) | (structure_N[j_L] == NO_STRUCTURE)
    alike_P[left_P] = apart_L <= np.where(is_plain_L, 0, MAX_COLOUR)
    return alike_P
