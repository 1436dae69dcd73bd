"""The recipe of the three models that ship with the demo: seeded, on CPU, from nothing.

They stand where a pretrained CLIP, a pretrained SigLIP (the second scorer, for transfer) and a pretrained
vision-language model stand in a large run. All learn on studio worlds alone, whose emblems no demo world ever shows.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from transformers import set_seed

from demo.drawing.emblems import COLOURS
from demo.drawing.references import phrase_question
from demo.drawing.silhouettes import KINDS
from demo.recipes import tiny_clip, tiny_llava, tiny_siglip
from demo.recipes.contrast import draw_studio_views, train_contrast, write_studio_articles
from demo.recipes.grounding import GroundingRecipe, Lessons, measure_grounding, train_grounding
from demo.recipes.milestones import Say, count_up, describe_machine, format_shares, report_steps
from demo.recipes.scorer_design import ScorerDesign
from demo.recipes.studio import draw_studio_scenes, iterate_texts
from pipeline.files.store import replace_dir, write_text
from pipeline.process.progress import track

NUM_SCENES: Final = 24_000
NUM_HELD_OUT: Final = 1_500
_NUM_TEXTS: Final = 1_500
# Where each draw of lots starts; `seed` is added to every one of them.
_VIEWS, _CONTRAST, _SCENES, _HELD_OUT, _TEXTS, _GROUNDING = 201, 11, 101, 102, 103, 7


def build_models(out_dir: Path, seed: int, say: Say) -> None:
    """Write out_dir/tiny-clip, out_dir/tiny-siglip and out_dir/tiny-llava, each with its card.

    Args:
        out_dir: parent of the three model folders.
        seed: the same seed on the same kind of machine gives the same weights.
        say: receives a line per milestone, the measured shares among them.
    """
    for design in (tiny_clip.DESIGN, tiny_siglip.DESIGN):
        build_scorer(design, out_dir / design.name, seed, say)
    build_llava(out_dir / "tiny-llava", seed, say)


def build_scorer(design: ScorerDesign, folder: Path, seed: int, say: Say) -> None:
    """Train and write a scorer, in rounds that each draw their own scenes."""
    started = time.monotonic()
    articles = (text for texts in write_studio_articles(_VIEWS + seed) for text in texts)
    processor = design.build_processor(articles)
    set_seed(seed)
    model = design.build_model(processor)
    for number, recipe in enumerate(design.rounds):
        with track(f"{design.name}: scenes drawn", recipe.num_scenes) as advance:
            data = draw_studio_views(_VIEWS + seed + number, recipe, design.image_size_px, count_up(advance))
        with report_steps(f"{design.name}: steps", recipe.num_steps, say) as report:
            train_contrast(model, processor, design, data, recipe, _CONTRAST + seed + number, report)
    minutes = (time.monotonic() - started) / 60
    say(f"{design.name}: done in {minutes:.0f} min")
    with replace_dir(folder) as partial:
        model.save_pretrained(partial, safe_serialization=True)
        processor.save_pretrained(partial)
        write_text(
            partial / "README.md", _write_scorer_card(design, type(model), model.num_parameters(), seed, minutes)
        )


def build_llava(folder: Path, seed: int, say: Say) -> None:
    """Train, measure on held-out scenes, and write the base policy."""
    started = time.monotonic()
    recipe = GroundingRecipe()
    with track("tiny-llava: scenes drawn", NUM_SCENES + NUM_HELD_OUT) as advance:
        count = count_up(advance)
        scenes, pixels = draw_studio_scenes(_SCENES + seed, NUM_SCENES, tiny_llava.IMAGE_SIZE_PX, count)
        count = count_up(advance)
        held_out, held_pixels = draw_studio_scenes(_HELD_OUT + seed, NUM_HELD_OUT, tiny_llava.IMAGE_SIZE_PX, count)
    tokenizer = tiny_llava.build_tokenizer(iterate_texts(_TEXTS + seed, _NUM_TEXTS))
    set_seed(seed)
    model = tiny_llava.build_model(tokenizer)
    lessons = Lessons(scenes, pixels, [list(KINDS), list(COLOURS)], phrase_question)
    with report_steps("tiny-llava: steps", recipe.num_steps, say) as report:
        train_grounding(model, tokenizer, lessons, recipe, _GROUNDING + seed, report)
    shares = measure_grounding(
        model, tokenizer, replace(lessons, scenes=held_out, pixels_N=held_pixels), _HELD_OUT + seed
    )
    minutes = (time.monotonic() - started) / 60
    found = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
    say(f"tiny-llava: boxes with IoU above 0.5 on {NUM_HELD_OUT} held-out scenes: {found}")
    say(f"tiny-llava: done in {minutes:.0f} min")
    with replace_dir(folder) as partial:
        model.save_pretrained(partial, safe_serialization=True)
        tiny_llava.build_processor(tokenizer).save_pretrained(partial)
        card = _write_llava_card(model.num_parameters(), recipe, seed, minutes, shares)
        write_text(partial / "README.md", card)


def _write_scorer_card(design: ScorerDesign, model_class: type, num_parameters: int, seed: int, minutes: float) -> str:
    return f"""# {design.name}

{design.summary} of {num_parameters:,} parameters that recognises the demo's emblems: a frozen scorer of the demo
profile.

- Class: `{model_class.__name__}`, {design.image_size_px} x {design.image_size_px} input (pictures are squashed, never
  cropped), {design.dim} dimensions, float32 safetensors.
- Trained from nothing by `region-r1 demo build-models` (demo/recipes/contrast.py), seed {seed}, on
  scenes of studio worlds, whose emblems no demo world shows; {describe_machine(minutes)}.
- Rounds: {json.dumps([asdict(recipe) for recipe in design.rounds])}
- Good for the demo only: it knows ten kinds of emblem, eight colours and six patterns, and nothing of the real world.
"""


def _write_llava_card(
    num_parameters: int, recipe: GroundingRecipe, seed: int, minutes: float, shares: dict[str, float]
) -> str:
    return f"""# tiny-llava

A LLaVA of {num_parameters:,} parameters that can point at what a question names: the base policy of the demo profile.

- Class: `LlavaForConditionalGeneration` (CLIP tower of 4 layers, Qwen2 decoder of 4 layers), 112 x 112 input, boxes
  in a frame of 28 x 28 units, float32 safetensors.
- Trained from nothing by `region-r1 demo build-models` (demo/recipes/grounding.py), seed {seed}, on {NUM_SCENES:,}
  scenes of a studio world whose emblems no demo world shows; {describe_machine(minutes)}.
- Recipe: {json.dumps(asdict(recipe))}
- It has not learned when a crop pays: {recipe.full_share:.0%} of its training answers, drawn at random, keep the
  full image. Nor does it know what the scorer likes: its boxes are those of the things.

Share of boxes with IoU above 0.5 on {NUM_HELD_OUT:,} held-out scenes (decision forced to REGION), by kind of reference:

| reference | IoU > 0.5 |
|---|---|
{format_shares(shares)}

Good for the demo only.
"""
