"""The compact list of ids agrees with a plain list and a plain dict, repeats and growth included."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.judging import validation
from pipeline.sources.judging.ids import IdList
from pipeline.sources.judging.ledger import DocumentLedger


def build(values: list[str]) -> IdList:
    ids = IdList()
    for value in values:
        ids.append(value)
    return ids


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=3)), st.text("ab", max_size=3))
def test_ids_and_their_first_places_are_those_of_a_list(values: list[str], other: str) -> None:
    ids = build(values)
    assert list(ids) == values
    for value in [*values, other]:
        assert ids.find_first(value) == (values.index(value) if value in values else None)


def test_first_places_survive_growth() -> None:
    values = [f"https://en.wikipedia.org/wiki/Thing_{number % 3000}" for number in range(5000)]
    ids = build(values)
    assert len(ids) == 5000
    assert all(ids.find_first(value) == number for number, value in enumerate(values[:3000]))
    assert ids.find_first("https://en.wikipedia.org/wiki/Thing_3000") is None


@given(st.lists(st.sampled_from(["a", "b", "c", "d"])))
def test_equal_ids_get_equal_numbers(values: list[str]) -> None:
    numbers = validation._number_ids(build(values)).tolist()
    assert numbers == [values.index(value) if values.count(value) > 1 else place for place, value in enumerate(values)]


def test_rows_that_were_not_kept_are_blank_in_the_order() -> None:
    ledger = DocumentLedger()
    ledger.num_rows = 6
    for row, doc_id, kept in ((2, "b", True), (3, "c", False), (5, "e", True)):
        ledger.add(f"kb.json:{row}", doc_id, images_decode=True, image_or_text=True)
        ledger.kept[-1] = kept
    assert list(ledger.list_by_row()) == ["", "b", "", "", "e", ""]
    assert (ledger.is_known("c"), ledger.is_kept("c"), ledger.is_kept("e")) == (True, False, True)
    assert ledger.find_earlier_row("e") == "kb.json:5"
