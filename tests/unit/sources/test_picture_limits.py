"""Pictures that a family cannot read are refused by their size alone, before a stage opens weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoConfig

from pipeline.config import Params, ScorerParams
from pipeline.errors import ModelError
from pipeline.files.store import save_pools, save_queries
from pipeline.policy import families
from pipeline.policy.families import check_pictures, load_frames, load_processor
from pipeline.retrieval.encoder import load_encoder
from pipeline.runs.tracking import null_run
from pipeline.stages import answer, train, warmup
from pipeline.types import Pool, Query
from pipeline.workspace import Workspace
from tests.tiny_families import BUILDERS, build_tiny_policy

_SIZES_PX = [(1, 1), (3, 1), (1, 200), (2000, 10), (2001, 10), (10, 3000), (3000, 10), (5000, 3), (20000, 1)]


@pytest.fixture(scope="module", params=BUILDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(request.param, tmp_path_factory.mktemp(request.param))


def test_a_picture_is_refused_where_its_processor_fails(folder: Path) -> None:
    get_frame = load_frames(folder)
    config = AutoConfig.from_pretrained(folder)
    resizer = load_processor(folder, families.find_family(config)).image_processor
    for size in _SIZES_PX:
        try:
            resizer([[Image.new("RGB", size)]], return_tensors="pt")
        except ValueError:
            with pytest.raises(
                ModelError, match=rf"{config.model_type} cannot read a picture of {size[0]} x {size[1]}"
            ):
                get_frame(*size)
        else:
            get_frame(*size)


def test_a_long_picture_is_not_blown_up_by_a_llava_that_resizes_the_shorter_side(tmp_path: Path) -> None:
    folder = build_tiny_policy("llava", tmp_path)
    load_frames(folder)(3000, 10)  # the demo's squashes
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"] |= {"size": {"shortest_edge": 112}, "do_center_crop": True}
    path.write_text(json.dumps(content))
    load_frames(folder)(2000, 10)
    with pytest.raises(ModelError, match="llava cannot read a picture of 10 x 2001 px"):
        load_frames(folder)(10, 2001)


def _ask(query_id: str, width_px: int, height_px: int = 10, **changes: Any) -> Query:
    fields = {"split": "test", "question": "?", "image_path": f"images/{query_id}.png"} | changes
    return Query(query_id=query_id, width_px=width_px, height_px=height_px, **fields)


def test_the_error_names_the_picture_and_counts_the_others(tmp_path: Path) -> None:
    get_frame = load_frames(build_tiny_policy("qwen3_vl", tmp_path))
    check_pictures(get_frame, [_ask("a", 2000)])
    with pytest.raises(
        ModelError, match=r"^images/b\.png \(query b\) qwen3_vl cannot read a picture of 3000 x 10 px"
    ) as one:
        check_pictures(get_frame, [_ask("a", 2000), _ask("b", 3000), _ask("c", 3000, image_path="images/b.png")])
    assert "others" not in str(one.value)
    with pytest.raises(ModelError, match=r"b\.png.*neither can it read 2 others"):
        check_pictures(get_frame, [_ask("b", 3000), _ask("c", 3000), _ask("d", 9000)])


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("stage", [warmup, train, answer], ids=["warmup", "train", "answer"])
def test_stages_refuse_it_before_they_begin(
    stage: Any, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (stage, split) == (answer, "train"):
        return  # it is not asked about training queries
    policy_dir = build_tiny_policy("qwen2_vl", tmp_path / "base")
    workspace = Workspace.at(tmp_path)
    queries = [_ask("good", 20), _ask("bad", 3000, split=split), _ask("dropped", 9000, split="train")]
    save_queries(workspace.tables_dir / "queries.parquet", queries)
    save_pools(
        workspace.pools_dir / "pools.parquet",
        [
            Pool(
                query_id=query.query_id,
                split=query.split,
                doc_ids=("d0", "d1"),
                scores=(0.9, 0.1),
                relevance=(True, False),
                num_relevant=1,
            )
            for query in queries[:2]
        ],
    )
    for name in ("sft_dir", "policy_dir"):
        getattr(workspace, name).mkdir(parents=True)
    for module, opener in ((warmup, "load_policy"), (train, "load_policy"), (answer, "_ask")):
        monkeypatch.setattr(module, opener, lambda *_: pytest.fail("opened weights"))
    params = Params.model_validate({"policy": {"path": str(policy_dir), "device": "cpu"}})
    with pytest.raises(ModelError, match=r"images/bad\.png \(query bad\)"):
        stage.run(params, workspace, null_run())


def test_encoders_read_crops_of_any_shape(tiny_clip_dir: Path) -> None:
    encoder = load_encoder(ScorerParams(path=str(tiny_clip_dir), device="cpu"))
    images = [Image.new("RGB", size) for size in [*_SIZES_PX, (70_000, 1), (1, 70_000)]]
    assert encoder.encode_images(images).shape == (len(images), encoder.dim)
