"""The recipe of the groceries' base policy: the demo's tiny policy, taught product groups on photos of its own.

It starts from the one that ships with the demo, which knows shapes, colours and places: with some 1,400 photos, that
saves most of the training. It sees no photo of the train, val or test queries.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from demo.groceries.catalogue import Catalogue
from demo.groceries.mosaics import phrase_question
from demo.groceries.photo_scenes import draw_photo_scenes, load_photos
from demo.recipes import tiny_llava
from demo.recipes.grounding import GroundingRecipe, Lessons, measure_grounding, train_grounding
from demo.recipes.milestones import Say, count_up, describe_machine, format_shares, report_steps
from pipeline.files.store import replace_dir, write_text
from pipeline.process.progress import track

POLICY_NAME: Final = "groceries-llava"
NUM_SCENES: Final = 12_000
NUM_HELD_OUT: Final = 600
POINTING: Final = GroundingRecipe(num_steps=1000, learning_rate=1e-3, warmup_steps=50)
_BUILTIN: Final = Path(__file__).resolve().parents[1] / "models"
# Where each draw of lots starts; `seed` is added to every one of them.
_SCENES, _HELD_OUT, _GROUNDING = 101, 102, 7


def build_policy(catalogue: Catalogue, folder: Path, seed: int, say: Say, recipe: GroundingRecipe = POINTING) -> None:
    """Train the base policy, measure it on mosaics of val photos, and write it with its card.

    Args:
        catalogue: its photos of the share "models" teach, those of "val" measure.
        folder: where the model goes.
        seed: the same seed on the same kind of machine gives the same weights.
        say: receives a line per milestone, the measured shares among them.
        recipe: settings of the training.
    """
    started = time.monotonic()
    side_px = tiny_llava.IMAGE_SIZE_PX
    photos, held_photos = load_photos(catalogue.photos["models"]), load_photos(catalogue.photos["val"])
    with track(f"{POLICY_NAME}: scenes drawn", NUM_SCENES + NUM_HELD_OUT) as advance:
        scenes, pixels = draw_photo_scenes(photos, _SCENES + seed, NUM_SCENES, side_px, count_up(advance))
        held_out, held_pixels = draw_photo_scenes(
            held_photos, _HELD_OUT + seed, NUM_HELD_OUT, side_px, count_up(advance)
        )
    lessons = Lessons(scenes, pixels, [catalogue.groups], phrase_question)
    model = AutoModelForImageTextToText.from_pretrained(_BUILTIN / "tiny-llava", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(_BUILTIN / "tiny-llava")
    set_seed(seed)  # the read-outs are drawn
    with report_steps(f"{POLICY_NAME}: steps", recipe.num_steps, say) as report:
        train_grounding(model, processor.tokenizer, lessons, recipe, _GROUNDING + seed, report)
    exam = replace(lessons, scenes=held_out, pixels_N=held_pixels)
    shares = measure_grounding(model, processor.tokenizer, exam, _HELD_OUT + seed)
    minutes = (time.monotonic() - started) / 60
    found = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
    say(f"{POLICY_NAME}: boxes with IoU above 0.5 on {NUM_HELD_OUT} held-out mosaics: {found}")
    say(f"{POLICY_NAME}: done in {minutes:.0f} min")
    with replace_dir(folder) as partial:
        model.save_pretrained(partial, safe_serialization=True)
        processor.save_pretrained(partial)
        write_text(partial / "README.md", _write_card(recipe, len(photos), seed, minutes, shares))


def _write_card(recipe: GroundingRecipe, num_photos: int, seed: int, minutes: float, shares: dict[str, float]) -> str:
    return f"""# {POLICY_NAME}

The demo's tiny-llava, taught to point at product groups: the base policy of the profile `groceries`.

- Trained by `region-r1 demo groceries-policy` (demo/recipes/grounding.py), seed {seed}, on {NUM_SCENES:,} mosaics of
  {num_photos:,} photos that no query shows; {describe_machine(minutes)}.
- Recipe: {json.dumps(asdict(recipe))}
- It has not learned when a crop pays: {recipe.full_share:.0%} of its training answers, drawn at random, keep the full
  image.

Share of boxes with IoU above 0.5 on {NUM_HELD_OUT} mosaics of val photos (decision forced to REGION), by kind of
reference; on a single photo the box is the whole picture:

| reference | IoU > 0.5 |
|---|---|
{format_shares(shares)}
"""
