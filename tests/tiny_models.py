"""Builders of tiny random models, of a small corpus and of a scorer with planted outcomes; no network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from demo.recipes import tiny_llava
from pipeline.config import Params
from pipeline.files.store import save_documents, save_qrels, save_queries
from pipeline.reranking.scorer import ScoredView
from pipeline.retrieval.encoder import F32, normalise
from pipeline.retrieval.views import NamedView
from pipeline.types import Box, Document, Outcome, Pool, Qrel, Query, Split
from pipeline.workspace import Workspace


def build_tiny_clip(folder: Path, *, seed: int = 0) -> Path:
    """Save a random CLIP of 32 x 32 inputs and 16 dimensions, with its processor."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: row for row, token in enumerate(["<pad>", "<start>", "<unk>", "<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
        model_max_length=24,
    )
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 24,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 3,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    image_processor = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    CLIPProcessor(image_processor, fast).save_pretrained(folder)
    return folder


def build_tiny_llava(folder: Path, *, seed: int = 0, hidden_size: int = 64) -> Path:
    """Save an untrained model of the demo's policy family, narrower, with its processor."""
    texts = [f"What is the {colour} thing at the {side}?" for colour in ("red", "blue") for side in ("left", "top")]
    tokenizer = tiny_llava.build_tokenizer(texts)
    with torch.random.fork_rng(), mock.patch.object(tiny_llava, "HIDDEN_SIZE", hidden_size):
        torch.manual_seed(seed)
        tiny_llava.build_model(tokenizer).save_pretrained(folder)
    tiny_llava.build_processor(tokenizer).save_pretrained(folder)
    return folder


class CountingEncoder:
    """A fixed random projection of pixels and letters that counts what it is given."""

    def __init__(self, *, digest: str = "fake", fail_after: int | None = None) -> None:
        self.dim = 12
        self.digest = digest
        self.input_size_px = 8
        self.has_text = True
        self.num_images = 0
        self.num_texts = 0
        self.batch_sizes: list[int] = []
        self._fail_after = fail_after
        self._weight = np.random.default_rng(1).normal(size=(8 * 8 * 3, self.dim))

    def encode_images(self, images: Sequence[Image.Image]) -> F32:
        if self._fail_after is not None and self.num_images + len(images) > self._fail_after:
            raise KeyboardInterrupt
        self.num_images += len(images)
        self.batch_sizes.append(len(images))
        pixels = [np.asarray(image.resize((8, 8)), dtype=np.float64).ravel() / 255 - 0.5 for image in images]
        return normalise((np.stack(pixels) @ self._weight).astype(np.float32))

    def encode_texts(self, texts: Sequence[str]) -> F32:
        self.num_texts += len(texts)
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) for text in texts]
        rows = [np.random.default_rng(seed).normal(size=self.dim) for seed in seeds]
        return normalise(np.stack(rows).astype(np.float32))


def build_corpus(root: Path, *, num_documents: int = 30, num_queries: int = 12) -> Workspace:
    """Write noise pictures and the tables that prepare would write; query i shows document i's picture."""
    workspace = Workspace.at(root)
    rng = np.random.default_rng(5)
    documents = []
    for number in range(num_documents):
        paths = tuple(f"docs/{number}_{view}.png" for view in range(number % 3))
        for path in paths:
            _save_noise(workspace.data_dir / path, rng, (20, 16))
        documents.append(Document(doc_id=f"d{number}", title=f"Thing {number}", text="A thing.", image_paths=paths))
    splits: tuple[Split, ...] = ("train", "val", "test")
    queries = []
    for number in range(num_queries):
        path = f"queries/{number // 2 if number < 4 else number}.png"
        _save_noise(workspace.data_dir / path, rng, (40, 30))
        queries.append(
            Query(
                query_id=f"q{number}",
                split=splits[number % 3],
                question="What is it?",
                image_path=path,
                width_px=40,
                height_px=30,
            )
        )
    qrels = [
        Qrel(query_id=f"q{number}", doc_id=f"d{(number + shift) % num_documents}")
        for number in range(num_queries)
        for shift in (0, 7)
    ]
    save_documents(workspace.tables_dir / "documents.parquet", documents)
    save_queries(workspace.tables_dir / "queries.parquet", queries)
    save_qrels(workspace.tables_dir / "qrels.parquet", qrels)
    return workspace


def build_params(scorer_dir: Path, *, pool_size: int = 10, batch_size: int = 5) -> Params:
    """Return parameters that name a scorer on the CPU."""
    return Params.model_validate(
        {
            "scorer": {"path": str(scorer_dir), "device": "cpu"},
            "batches": {"scorer": batch_size},
            "retrieve": {"pool_size": pool_size},
        }
    )


def build_outcome(first_rank: int, *, margin: float = 0.0) -> Outcome:
    """Return the outcome of a pool with one positive at this rank."""
    return Outcome(
        first_rank=first_rank,
        reciprocal_rank=1.0 / first_rank,
        ndcg=float(1.0 / np.log2(1 + first_rank)),
        margin=margin,
    )


class PlantedScorer:
    """Stands in for the frozen scorer: every full image ranks alike, `score_box` says how a crop ranks."""

    def __init__(
        self, questions: Mapping[str, str], *, baseline: Outcome, score_box: Callable[[str, Box], Outcome]
    ) -> None:
        self.queries = {
            query_id: Query(
                query_id=query_id,
                split="val" if query_id.startswith("val") else "train",
                question=question,
                image_path=f"{query_id}.png",
                width_px=40,
                height_px=30,
            )
            for query_id, question in questions.items()
        }
        self.pools = {
            query_id: Pool(
                query_id=query_id,
                split=query.split,
                doc_ids=("d0", "d1"),
                scores=(0.9, 0.1),
                relevance=(False, True),
                num_relevant=1,
            )
            for query_id, query in self.queries.items()
        }
        self.num_encoded = 0
        self._baseline = baseline
        self._score_box = score_box

    @property
    def teaching_ids(self) -> list[str]:
        return sorted(query_id for query_id, pool in self.pools.items() if pool.split == "train")

    def get_baseline(self, query_id: str) -> ScoredView:
        return ScoredView(self._baseline, np.zeros(2, dtype=np.float32))

    def score_views(self, views: Sequence[NamedView]) -> list[ScoredView]:
        self.num_encoded += len(views)
        return [
            self.get_baseline(query_id)
            if box is None
            else ScoredView(self._score_box(query_id, box), np.zeros(2, dtype=np.float32))
            for query_id, box in views
        ]

    def load_image(self, query_id: str) -> Image.Image:
        rng = np.random.default_rng(sorted(self.queries).index(query_id))
        return Image.fromarray(rng.integers(0, 255, size=(3, 4, 3), dtype=np.uint8)).resize((40, 30))


def _save_noise(path: Path, rng: np.random.Generator, size_px: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(rng.integers(0, 255, size=(4, 4, 3), dtype=np.uint8))
    coarse.resize(size_px, Image.Resampling.BICUBIC).save(path)
