"""The recipes of the base models: what they train on, what the dense targets say, and that they run."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from demo.drawing.emblems import COLOURS
from demo.drawing.entities import build_entities, list_population
from demo.drawing.references import phrase_question
from demo.drawing.silhouettes import KINDS
from demo.recipes import contrast, grounding, studio, tiny_clip, tiny_llava, tiny_siglip
from demo.recipes.scorer_design import ContrastRecipe, ScorerDesign
from demo.recipes.training_scenes import Reference, Thing, TrainingScene, normalise, squash
from pipeline.config import ScorerParams
from pipeline.retrieval.encoder import load_encoder
from pipeline.types import Box

_NUM_ENTITIES = 48
_DESIGNS = (tiny_clip.DESIGN, tiny_siglip.DESIGN)
_SIDE_PX = tiny_llava.IMAGE_SIZE_PX


@pytest.fixture(autouse=True)
def few_entities(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (studio, contrast):
        monkeypatch.setattr(module, "NUM_STUDIO_ENTITIES", _NUM_ENTITIES)


@pytest.fixture(scope="module")
def drawn() -> tuple[list[TrainingScene], Any]:
    entities = build_entities(1, _NUM_ENTITIES, "studio")
    pairs = [studio.draw_studio_scene((1, number), entities) for number in range(6)]
    return [scene for scene, _ in pairs], np.stack([squash(image, _SIDE_PX) for _, image in pairs])


@pytest.fixture(scope="module")
def tokenizer(drawn: tuple[list[TrainingScene], Any]) -> Any:
    rng = np.random.default_rng(0)
    words = [f"the {colour} {kind}" for colour in COLOURS for kind in KINDS] * 20
    return tiny_llava.build_tokenizer(
        [*words, *(phrase_question(scene.pick_reference(rng).phrase, rng) for scene in drawn[0])]
    )


def test_studio_and_demo_share_no_look() -> None:
    assert not set(list_population("studio")) & set(list_population("demo"))


def test_studio_draws_from_the_studio_population_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def spy(seed: int, count: int, population: Any) -> Any:
        asked.append(population)
        return build_entities(seed, count, population)

    for module in (studio, contrast):
        monkeypatch.setattr(module, "build_entities", spy)
    studio._draw_chunk((1, 0, 1, 32))
    list(studio.iterate_texts(1, 2))
    contrast._draw_view_chunk((1, 0, 1, 0.25, 32))
    contrast._draw_gallery_chunk((1, 0, 1, 32))
    contrast.write_studio_articles(1)
    assert asked == ["studio"] * 5


def test_a_scene_is_named_by_its_seed(drawn: tuple[list[TrainingScene], Any]) -> None:
    scenes, pixels = drawn
    again, image = studio.draw_studio_scene((1, 2), build_entities(1, _NUM_ENTITIES, "studio"))
    assert again == scenes[2]
    assert (squash(image, _SIDE_PX) == pixels[2]).all()


def test_references_point_at_things(drawn: tuple[list[TrainingScene], Any]) -> None:
    for scene in drawn[0]:
        assert scene.references
        assert all(0 <= reference.thing < len(scene.things) for reference in scene.references)
        names = [thing.names for thing in scene.things]
        assert len(names) == len(set(names))


def test_dense_targets_lie_where_things_lie() -> None:
    kinds, colours = list(KINDS), list(COLOURS)
    left = Thing(0, (kinds[2], colours[1]), Box(0.0, 0.0, 0.25, 0.5))
    right = Thing(1, (kinds[4], colours[3]), Box(0.5, 0.25, 1.0, 1.0))
    scene = TrainingScene((left, right), (Reference(1, "size", "the largest"),))
    targets = grounding.build_dense_targets([scene], [kinds, colours], ["the smallest", "the largest"])
    kind_YX, colour_YX = targets.names_KBP.view(2, 8, 8)
    role_YXR = targets.role_BPR.view(8, 8, 2)
    wanted_YX = torch.full((8, 8), len(kinds))
    wanted_YX[0:4, 0:2] = 2
    wanted_YX[2:8, 4:8] = 4
    assert torch.equal(kind_YX, wanted_YX)
    assert torch.equal(colour_YX == 3, wanted_YX == 4)
    assert torch.equal(colour_YX == len(colours), wanted_YX == len(kinds))
    assert targets.box_BP4.view(8, 8, 4)[3, 1].tolist() == [0, 0, 7, 14]
    assert targets.box_BP4.view(8, 8, 4)[7, 7].tolist() == [14, 7, 28, 28]
    assert torch.equal(role_YXR[..., 1] == 1, wanted_YX == 4)
    assert not role_YXR[..., 0].any()
    picked = targets.pick(torch.tensor([0, 0]))
    assert picked.names_KBP.shape == (2, 2, 64)


def test_answer_loss_is_the_models_own(drawn: tuple[list[TrainingScene], Any], tokenizer: Any) -> None:
    scenes, pixels = drawn
    torch.manual_seed(0)
    model = tiny_llava.build_model(tokenizer).eval()
    rng = np.random.default_rng(2)
    examples = [grounding._write_example(scene, phrase_question, rng, 0.4) for scene in scenes[:3] for _ in range(2)]
    texts = [(example.prompt, example.answer) for example in examples]
    pixel_values = normalise(pixels[:3])
    with torch.inference_mode():
        passed = grounding._run_model(model, tokenizer, pixel_values, examples)
        assert passed.vision_BPH.shape == (3, tiny_llava.NUM_PATCHES, tiny_llava.HIDDEN_SIZE)
        assert passed.shown_BPH.shape == passed.vision_BPH.shape
        assert passed.patches_NPH.shape == (6, tiny_llava.NUM_PATCHES, tiny_llava.HIDDEN_SIZE)
        encoded = tokenizer([a + b for a, b in texts], return_tensors="pt", padding=True, add_special_tokens=False)
        labels = encoded["input_ids"].clone()
        for row, (_, answer) in enumerate(texts):
            labels[row, : -len(tokenizer(answer, add_special_tokens=False)["input_ids"])] = -100
        pixel_values = pixel_values.repeat_interleave(2, 0)
        wanted = model(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            pixel_values=pixel_values,
            labels=labels,
        ).loss
    assert passed.answer_loss.item() == pytest.approx(wanted.item(), abs=1e-4)


def test_training_pixels_are_the_processors(drawn: tuple[list[TrainingScene], Any], tokenizer: Any) -> None:
    _, image = studio.draw_studio_scene((1, 0), build_entities(1, _NUM_ENTITIES, "studio"))
    processor = tiny_llava.build_processor(tokenizer)
    wanted = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalise(drawn[1][:1]), wanted, atol=1e-2, rtol=0)


def test_training_prompt_is_the_chat_templates(tokenizer: Any) -> None:
    from pipeline.config import PolicyParams
    from pipeline.policy.conversation import Conversation

    processor = tiny_llava.build_processor(tokenizer)
    text = Conversation(processor, PolicyParams()).write_prompt("Which one?")
    expanded = text.replace(tiny_llava.IMAGE, tiny_llava.IMAGE * tiny_llava.NUM_PATCHES)
    assert grounding._write_prompt("Which one?") == expanded


def test_grounding_recipe_runs(drawn: tuple[list[TrainingScene], Any], tokenizer: Any) -> None:
    scenes, pixels = drawn
    lessons = grounding.Lessons(scenes, pixels, [list(KINDS), list(COLOURS)], phrase_question)
    recipe = grounding.GroundingRecipe(num_steps=2, num_scenes_per_step=3, warmup_steps=1)
    reported: list[tuple[int, dict[str, float]]] = []
    torch.manual_seed(0)
    model = tiny_llava.build_model(tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grounding.train_grounding(model, tokenizer, lessons, recipe, 1, lambda *figures: reported.append(figures))
    assert [step for step, _ in reported] == [0, 1]
    assert all(np.isfinite(list(figures.values())).all() for _, figures in reported)
    towers = ("vision_tower", "multi_modal_projector", "language_model")
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(any(tower in name for name in moved) for tower in towers)
    shares = grounding.measure_grounding(model, tokenizer, lessons, 1)
    assert "all" in shares
    assert all(0.0 <= share <= 1.0 for share in shares.values())


@pytest.mark.parametrize("design", _DESIGNS, ids=lambda design: design.name)
def test_contrast_recipe_runs(design: ScorerDesign) -> None:
    entities = build_entities(1, _NUM_ENTITIES, "studio")
    side_px = design.image_size_px
    views_V, owners = contrast._draw_view_chunk((1, 0, 4, 0.25, side_px))
    assert views_V.shape == (12, 3, side_px, side_px)
    gallery = np.zeros((_NUM_ENTITIES, 3, 3, side_px, side_px), dtype=np.uint8)
    gallery[:4] = contrast._draw_gallery_chunk((1, 0, 4, side_px))
    names = sorted({(entity.kind, entity.colour) for entity in entities})
    data = contrast.StudioViews(
        views_V=views_V,
        entity_V=np.asarray(owners),
        gallery_EG=gallery,
        texts_E=contrast.write_studio_articles(1),
        group_E=np.asarray([names.index((entity.kind, entity.colour)) for entity in entities]),
        looks_E=np.asarray([contrast._number_look(entity) for entity in entities]),
    )
    processor = design.build_processor([text for texts in data.texts_E for text in texts])
    torch.manual_seed(0)
    model = design.build_model(processor)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = ContrastRecipe(num_steps=2, num_groups=len(names), warmup_steps=1)
    reported: list[dict[str, float]] = []
    contrast.train_contrast(model, processor, design, data, recipe, 1, lambda _, figures: reported.append(figures))
    assert len(reported) == 2
    assert all(np.isfinite(list(figures.values())).all() for figures in reported)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(any(tower in name for name in moved) for tower in ("vision_model", "text_model", "logit_scale"))


@pytest.mark.parametrize("design", _DESIGNS, ids=lambda design: design.name)
def test_articles_fit_the_scorers_text_tower(design: ScorerDesign) -> None:
    texts = [text for articles in contrast.write_studio_articles(1) for text in articles]
    processor = design.build_processor(texts)
    model = design.build_model(processor)
    longest = max(len(ids) for ids in processor.tokenizer(texts)["input_ids"])
    assert longest <= model.config.text_config.max_position_embeddings


@pytest.mark.parametrize("design", _DESIGNS, ids=lambda design: design.name)
def test_family_s_loss_falls_when_pairs_match(design: ScorerDesign) -> None:
    model = design.build_model(design.build_processor(["a thing"]))
    rows_BD = torch.eye(6, design.dim)
    right, wrong = (design.compute_loss(model, rows_BD, other).item() for other in (rows_BD, rows_BD.roll(1, 0)))
    assert right < wrong


def test_sigmoid_loss_is_the_one_of_transformers() -> None:
    model = tiny_siglip.build_model(tiny_siglip.build_processor(["a thing"]))
    states = torch.nn.functional.normalize(torch.randn(2, 5, tiny_siglip.DIM), dim=-1)
    ids = torch.zeros(5, 4, dtype=torch.long)
    pixels = torch.zeros(5, 3, tiny_siglip.IMAGE_SIZE_PX, tiny_siglip.IMAGE_SIZE_PX)
    towers = [mock.Mock(return_value=mock.Mock(pooler_output=rows)) for rows in states]
    with (
        mock.patch.object(type(model.vision_model), "forward", towers[0]),
        mock.patch.object(type(model.text_model), "forward", towers[1]),
        torch.no_grad(),
    ):
        wanted = model(input_ids=ids, pixel_values=pixels, return_loss=True).loss.item()
        assert tiny_siglip.compute_loss(model, *states).item() == pytest.approx(wanted, rel=1e-5)


def test_shipped_scorers_open_and_differ_in_architecture() -> None:
    folders = [f"demo/models/{design.name}" for design in _DESIGNS]
    encoders = [load_encoder(ScorerParams(path=folder, device="cpu")) for folder in folders]
    assert [encoder.model_type for encoder in encoders] == ["clip", "siglip"]
    assert len({encoder.digest for encoder in encoders}) == 2
    configs = [AutoConfig.from_pretrained(folder) for folder in folders]
    for size in ("hidden_size", "num_hidden_layers", "patch_size", "image_size"):
        assert getattr(configs[0].vision_config, size) != getattr(configs[1].vision_config, size)
    for design, encoder in zip(_DESIGNS, encoders, strict=True):
        assert (encoder.dim, encoder.input_size_px) == (design.dim, design.image_size_px)
        vectors_ND = encoder.encode_texts(["A red star.", "A blue ring. " * 90])
        pictures_ND = encoder.encode_images([Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")])
        lengths = np.linalg.norm(np.concatenate([vectors_ND, pictures_ND]), axis=1)
        assert lengths == pytest.approx(np.ones(4), abs=1e-5)
        assert not np.allclose(pictures_ND[0], pictures_ND[1])
        assert not np.allclose(vectors_ND[0], vectors_ND[1])


@pytest.mark.parametrize(("step", "factor"), [(0, 0.25), (3, 1.0), (4, 1.01), (10, 0.01)])
def test_learning_rate_warms_up_then_falls(step: int, factor: float) -> None:
    assert contrast.compute_lr_factor(step, 4, 10) == pytest.approx(factor)
