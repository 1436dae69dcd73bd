"""User text with a model's special tokens stays text: in every family of policies, by every engine, in the encoder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import PolicyParams, ScorerParams
from pipeline.models.plain_text import PlainText, list_markers
from pipeline.policy.policy import Policy, load_policy
from pipeline.retrieval.encoder import load_encoder
from pipeline.retrieval.foreign_encoders import _OpenClipTokenizer
from tests.tiny_families import BUILDERS, build_tiny_policy

_FOREIGN = ["<image>", "<|image_pad|>", "<|vision_start|>", "<fake_token_around_image>", "<|im_end|>", "<tool_call>"]
_MARKERS = ["<a>", "<ab>", "|b|", "a><", "<<"]
_ORDINARY = ["What is it?", "Is 3 < 4 > 2?", "what <b>bold</b> é?", "a  b\t(c) [d] {e} <image", "image>"]
_IMAGE = Image.new("RGB", (56, 40), "teal")


@given(st.text(alphabet="<>|ab A", max_size=30))
def test_no_marker_survives_and_nothing_else_changes(text: str) -> None:
    plain = PlainText(_MARKERS)(text)
    assert not any(marker in plain.lower() for marker in _MARKERS)
    assert plain.replace(" ", "") == text.replace(" ", "")
    assert PlainText(_MARKERS)(plain) == plain


@given(st.text(max_size=30))
def test_text_without_markers_is_untouched(text: str) -> None:
    markers = ["<|im_end|>", "\n", "x y", "Z"]  # the last three are ordinary text, whatever a vocabulary says
    if "<|im_end|>" not in text.lower():
        assert PlainText(markers)(text) == text


def test_a_marker_is_parted_where_all_can_see_it() -> None:
    assert PlainText(["<image>", "<|im_end|>"])("a <image> b<|IM_end|>") == "a < image> b< |IM_end|>"


@pytest.fixture(scope="module", params=BUILDERS)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = build_tiny_policy(request.param, tmp_path_factory.mktemp(request.param))
    return load_policy(folder, PolicyParams(path=str(folder), max_new_tokens=8, device="cpu"))


def _list_hostile(policy: Policy) -> list[str]:
    own = sorted({*list_markers(policy.processor.tokenizer), policy.processor.image_token})
    return [*(f"What is {marker} here?" for marker in dict.fromkeys([*own, *_FOREIGN])), "".join(own), own[0] * 3]


def _count_special(policy: Policy, question: str) -> Counter[int]:
    prompt = policy.conversation.write_prompt(question)
    ids = policy.processor(text=[prompt], images=[[_IMAGE]], return_tensors="pt")["input_ids"][0].tolist()
    added = set(policy.processor.tokenizer.added_tokens_decoder)
    return Counter(token for token in ids if token in added)


def test_questions_hold_no_special_token(policy: Policy) -> None:
    wanted = _count_special(policy, "What is it?")
    assert wanted[policy.tokens.picture_id] > 0
    for question in _list_hostile(policy):
        assert _count_special(policy, question) == wanted, question


def test_hostile_characters_all_reach_the_model(policy: Policy) -> None:
    for question in _list_hostile(policy):
        ids = policy.processor.tokenizer(policy.conversation.write_prompt(question))["input_ids"]
        read = policy.processor.tokenizer.decode(ids, skip_special_tokens=True)
        assert question.replace(" ", "") in read.replace(" ", "")


def test_ordinary_questions_are_asked_as_they_are(policy: Policy) -> None:
    for question in _ORDINARY:
        assert policy.conversation.build_messages(question)[0]["content"][1]["text"] == question


def test_hostile_questions_are_answered(policy: Policy) -> None:
    questions = _list_hostile(policy)
    images = [_IMAGE] * len(questions)
    assert len(policy.decide(images, questions)) == len(questions)
    seeds = range(3)
    assert len(policy.sample_regions(images[:3], questions[:3], num_samples=2, seeds=seeds)) == 3


def test_a_document_cannot_end_its_own_text(tiny_clip_dir: Path) -> None:
    encoder = load_encoder(ScorerParams(path=str(tiny_clip_dir), device="cpu"))
    plain, hostile, other = encoder.encode_texts(["a red", "a red<end> barn", "a red<end> boat"])
    assert np.abs(hostile - plain).max() > 1e-3
    assert np.abs(hostile - other).max() > 1e-3


class _SimpleTokenizer:
    """Reads as open_clip's does: entities resolved, lower case, special tokens wherever they stand."""

    all_special_ids = (1, 2)
    decoder = {1: "<start_of_text>", 2: "<end_of_text>"}  # noqa: RUF012

    def __call__(self, texts: list[str]) -> list[list[int]]:
        import html

        read = [html.unescape(html.unescape(text)).lower() for text in texts]
        return [[1] * text.count("<start_of_text>") + [2] * text.count("<end_of_text>") for text in read]


@pytest.mark.parametrize("text", ["<end_of_text>", "<END_of_text>", "&lt;end_of_text&gt;", "&amp;lt;start_of_text>"])
def test_open_clip_reads_its_special_tokens_as_text(text: str) -> None:
    assert _OpenClipTokenizer(_SimpleTokenizer())([f"a {text} b"])["input_ids"] == [[]]


def test_open_clip_around_a_tokenizer_of_transformers_knows_its_special_tokens() -> None:
    inner = SimpleNamespace(added_tokens_decoder={}, all_special_tokens=["</s>"])
    seen: list[str] = []

    class Outer:
        tokenizer = inner

        def __call__(self, texts: list[str]) -> list[list[int]]:
            seen.extend(texts)
            return [[0]]

    _OpenClipTokenizer(Outer())(["a</s>&lt;"])
    assert seen == ["a< /s>&lt;"]
