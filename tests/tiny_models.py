"""Builders of tiny random models and of a small corpus, in a second and without a network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.config import Params
from pipeline.learn.encoder import F32, normalise
from pipeline.store import save_documents, save_qrels, save_queries
from pipeline.types import Document, Qrel, Query, Split
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


class CountingEncoder:
    """A fixed random projection of pixels and letters that counts what it is given."""

    def __init__(self, *, digest: str = "fake", fail_after: int | None = None) -> None:
        self.dim = 12
        self.digest = digest
        self.input_size_px = 8
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
        documents.append(
            Document(doc_id=f"d{number}", title=f"Thing {number}", text="A thing.", image_paths=paths)
        )
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
            "scorer": {"path": str(scorer_dir), "batch_size": batch_size, "device": "cpu"},
            "retrieve": {"pool_size": pool_size},
        }
    )


def _save_noise(path: Path, rng: np.random.Generator, size_px: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(rng.integers(0, 255, size=(4, 4, 3), dtype=np.uint8))
    coarse.resize(size_px, Image.Resampling.BICUBIC).save(path)
