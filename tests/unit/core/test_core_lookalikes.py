"""Lookalikes across splits: the bands miss none that comparing every pair finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.inputs import lookalikes
from pipeline.core.inputs.lookalikes import (
    COLOUR_GRID,
    MAX_BITS,
    MAX_COLOUR,
    NO_STRUCTURE,
    Fingerprint,
    find_lookalikes,
)

NUM_COLOURS = 3 * COLOUR_GRID**2
GREY = bytes([128] * NUM_COLOURS)


def flip(structure: int, *bits: int) -> int:
    for bit in bits:
        structure ^= 1 << bit
    return structure


def compare_all(fingerprints: list[Fingerprint], splits: list[str]) -> list[tuple[int, int]]:
    """Compare every pair in plain Python."""
    found = []
    for i, one in enumerate(fingerprints):
        for j in range(i + 1, len(fingerprints)):
            other = fingerprints[j]
            plain = NO_STRUCTURE in (one.structure, other.structure)
            apart = max(abs(a - b) for a, b in zip(one.colours, other.colours, strict=True))
            close = apart <= (0 if plain else MAX_COLOUR)
            if splits[i] != splits[j] and (one.structure ^ other.structure).bit_count() <= MAX_BITS and close:
                found.append((i, j))
    return found


# Few base hashes and few flipped bits: most pairs are near the limit, on one side or the other.
FINGERPRINTS = st.builds(
    lambda base, bits, shade: Fingerprint(flip(base, *bits), bytes([100 + shade] * NUM_COLOURS)),
    base=st.sampled_from([NO_STRUCTURE, 0x0F0F0F0F0F0F0F0F, 0xFFFFFFFF00000000]),
    bits=st.sets(st.integers(0, 63), max_size=4),
    shade=st.integers(0, 20),
)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(FINGERPRINTS, st.sampled_from(["train", "val", "test"])), max_size=25))
def test_bands_find_what_comparing_every_pair_finds(rows: list[tuple[Fingerprint, str]]) -> None:
    fingerprints, splits = [row[0] for row in rows], [row[1] for row in rows]
    assert find_lookalikes(fingerprints, splits) == compare_all(fingerprints, splits)


@settings(deadline=None)
@given(structure=st.integers(1, 2**64 - 1), bits=st.sets(st.integers(0, 63), max_size=8))
def test_a_hash_is_found_up_to_the_limit_wherever_the_bits_lie(structure: int, bits: set[int]) -> None:
    pair = [Fingerprint(structure, GREY), Fingerprint(flip(structure, *bits), GREY)]
    assert bool(find_lookalikes(pair, ["train", "test"])) == (len(bits) <= MAX_BITS)


def test_pictures_of_one_split_may_look_alike() -> None:
    assert find_lookalikes([Fingerprint(5, GREY)] * 3, ["train"] * 3) == []
    assert find_lookalikes([], []) == []


@pytest.mark.parametrize(("structure", "limit"), [(5, MAX_COLOUR), (NO_STRUCTURE, 0)])
def test_other_colours_are_another_picture(structure: int, limit: int) -> None:
    for shift, found in ((limit, [(0, 1)]), (limit + 1, [])):
        colours = bytes([*GREY[:-1], 128 + shift])
        pair = [Fingerprint(structure, GREY), Fingerprint(structure, colours)]
        assert find_lookalikes(pair, ["train", "test"]) == found


def test_pairs_are_looked_at_a_bounded_number_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    fingerprints = [Fingerprint(int(bits), GREY) for bits in rng.integers(1, 40, size=120)]
    splits = [("train", "val", "test")[number % 3] for number in range(120)]
    whole = find_lookalikes(fingerprints, splits)
    monkeypatch.setattr(lookalikes, "_CHUNK_PAIRS", 7)
    assert find_lookalikes(fingerprints, splits) == whole == compare_all(fingerprints, splits)
