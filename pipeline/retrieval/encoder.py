"""The frozen encoder: pictures, and texts where it knows any, to unit vectors in one space.

Departures from the textbook CLIP preprocessing:
- A picture is squashed to the square input, never centre-cropped: what lies at its edges counts.
- PIL cuts and resizes in threads (`encode_in_stream`); normalisation runs on the whole batch at once.

Shapes: N rows, D dimensions, H and W pixels of the input, C channels, T tokens.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoProcessor

from pipeline.config import BatchParams, ScorerParams
from pipeline.errors import ModelError, write_on_one_line
from pipeline.files.images import crop_view
from pipeline.models.model_folder import check_model_folder, compute_model_digest, resolve_model_path
from pipeline.models.plain_text import PlainText, list_markers
from pipeline.models.precision import choose_device
from pipeline.retrieval.foreign_encoders import check_revision, is_open_clip, load_open_clip, load_remote
from pipeline.retrieval.image_encoders import BACKBONES, is_backbone, is_timm, load_backbone, load_timm

F32 = NDArray[np.float32]
Item = TypeVar("Item")
Untyped = Any
"""A class of transformers, whose attributes depend on the model."""

_NUM_WORKERS: Final = min(8, os.cpu_count() or 1)
_CPU_BATCH: Final = 32
"""A larger batch leaves a CPU's caches: 256 took 1.8 times the CPU time of 32, ViT of 0.8 M parameters."""
_CPU_BATCH_PIXELS: Final = 7 * 224**2
"""The same for large inputs: 32 pictures of 224 pixels took 1.6 times the CPU time of 8, EfficientNet-Lite0."""
_MIN_NORM: Final = 1e-12
_FIXED_LENGTH_FAMILIES: Final = frozenset({"siglip", "siglip2"})
"""Families whose text tower was trained on texts padded to full length."""


class Encoder(Protocol):
    """What the rest of the project knows of an encoder."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def digest(self) -> str:
        """Hash that names weights and configuration; vectors of different digests never mix."""

    @property
    def model_type(self) -> str:
        """Family of the model, as transformers names it."""

    @property
    def input_size_px(self) -> int:
        """Side of the square input."""

    @property
    def has_text(self) -> bool:
        """Whether texts have vectors; without, documents are ranked by their pictures alone."""

    def encode_images(self, images: Sequence[Image.Image]) -> F32:
        """Return one unit vector per picture; pictures of another size are squashed to the input's."""

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Return one unit vector per text, read as plain text; one that is too long is cut at its end.

        Without `has_text` they are zero: fused with a picture's vector they leave it as it is.
        """


class ImageEncoder:
    """An encoder of pictures alone: one of timm, or a backbone of transformers.

    Args:
        model: has `get_image_features`.
        processor: its image processor gives mean, deviation and scale.
        digest: what names the folder's content.
        batch_size: most rows that go through the model at once.
        device: where the model lies.
    """

    def __init__(
        self, model: Untyped, processor: Untyped, *, digest: str, batch_size: int, device: torch.device
    ) -> None:
        self._model = model
        self._device = device
        self._digest = digest
        self._model_type = str(model.config.model_type)
        self._input_size_px = int(model.config.vision_config.image_size)
        most = min(_CPU_BATCH, max(1, _CPU_BATCH_PIXELS // self._input_size_px**2))
        self._batch_size = min(batch_size, most) if device.type == "cpu" else batch_size
        self._scale_C, self._shift_C = _read_normalisation(processor.image_processor, device)
        with torch.inference_mode():
            self._dim: int = self._encode_image_batch([Image.new("RGB", (1, 1))]).shape[1]

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def digest(self) -> str:
        """Hash of the model folder."""
        return self._digest

    @property
    def model_type(self) -> str:
        """Family of the model, as transformers names it: clip, siglip ..."""
        return self._model_type

    @property
    def input_size_px(self) -> int:
        """Side of the square input."""
        return self._input_size_px

    @property
    def has_text(self) -> bool:
        """Whether texts have vectors."""
        return False

    def encode_images(self, images: Sequence[Image.Image]) -> F32:
        """Return (N, D) unit vectors of the pictures."""
        return self._encode(images, self._encode_image_batch)

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Return (N, D) zeros."""
        return np.zeros((len(texts), self._dim), dtype=np.float32)

    def _encode(self, items: Sequence[Item], encode_batch: Callable[[Sequence[Item]], torch.Tensor]) -> F32:
        if not items:
            return np.empty((0, self._dim), dtype=np.float32)
        starts = range(0, len(items), self._batch_size)
        with torch.inference_mode():
            parts = [encode_batch(items[start : start + self._batch_size]).float().cpu().numpy() for start in starts]
        return normalise(np.concatenate(parts))

    def _encode_image_batch(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels_NHWC = torch.from_numpy(np.stack([np.asarray(self._fit(image)) for image in images])).to(self._device)
        pixels_NHWC = pixels_NHWC.to(torch.float32).mul_(self._scale_C).add_(self._shift_C)
        pixels_NCHW = pixels_NHWC.permute(0, 3, 1, 2).contiguous().to(self._model.dtype)
        return _get_features(self._model.get_image_features(pixel_values=pixels_NCHW))

    def _fit(self, image: Image.Image) -> Image.Image:
        return crop_view(image.convert("RGB"), None, (self._input_size_px, self._input_size_px))


class ClipEncoder(ImageEncoder):
    """A dual encoder of the CLIP family: CLIP, SigLIP and the like from transformers, or one adapted as such.

    Args:
        model: has `get_image_features` and `get_text_features`.
        processor: its image processor gives mean, deviation and scale; its tokenizer reads texts.
        digest: what names the folder's content.
        batch_size: most rows that go through the model at once.
        device: where the model lies.
    """

    def __init__(
        self, model: Untyped, processor: Untyped, *, digest: str, batch_size: int, device: torch.device
    ) -> None:
        super().__init__(model, processor, digest=digest, batch_size=batch_size, device=device)
        self._tokenizer = processor.tokenizer
        self._as_plain_text = PlainText(list_markers(processor.tokenizer))
        self._max_tokens = int(model.config.text_config.max_position_embeddings)
        fixed_length = self._model_type in _FIXED_LENGTH_FAMILIES
        self._padding: Literal["max_length", "longest"] = "max_length" if fixed_length else "longest"

    @property
    def has_text(self) -> bool:
        """Whether texts have vectors."""
        return True

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Return (N, D) unit vectors of the texts."""
        return self._encode(texts, self._encode_text_batch)

    def _encode_text_batch(self, texts: Sequence[str]) -> torch.Tensor:
        tokens_NT = self._tokenizer(
            [self._as_plain_text(text) for text in texts],
            padding=self._padding,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self._device)
        wanted = {name: tokens_NT[name] for name in ("input_ids", "attention_mask") if name in tokens_NT}
        return _get_features(self._model.get_text_features(**wanted))


def load_encoder(params: ScorerParams, batch_size: int = BatchParams().scorer) -> Encoder:
    """Load the frozen encoder from a local folder; the network is never asked.

    Args:
        params: which folder, and how.
        batch_size: `batches.scorer`.

    Raises:
        ModelError: the folder is missing, of another family, incomplete, holds no safetensors, or holds code that is
            not of the pinned commit.
    """
    path = resolve_model_path(params.path)
    device = choose_device(params.device, "scorer.device")
    kind, model, processor = _open_folder(params, path, device)
    return kind(model, processor, digest=name_encoder(params), batch_size=batch_size, device=device)


def _open_folder(params: ScorerParams, path: Path, device: torch.device) -> tuple[type[ImageEncoder], Untyped, Untyped]:
    dtype = _pick_dtype(params, device)
    if is_open_clip(path):
        return ClipEncoder, *load_open_clip(path, device, dtype or torch.float32)
    check_model_folder(path)
    if is_timm(path):
        return ImageEncoder, *load_timm(path, device, dtype or torch.float32)
    # A GPU takes the weights as they were saved (paper: fp16).
    if params.revision is not None:
        check_revision(path, params.revision)
        return ClipEncoder, *load_remote(path, device, dtype or "auto")
    if is_backbone(path):
        return ImageEncoder, *load_backbone(path, device, dtype or "auto")
    return ClipEncoder, *_load_transformers(path, device, dtype or "auto")


def _load_transformers(path: Path, device: torch.device, dtype: torch.dtype | str) -> tuple[Untyped, Untyped]:
    _check_family(path)
    try:
        model, report = AutoModel.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be loaded: {write_on_one_line(error)}") from error
    if report["missing_keys"]:
        raise ModelError(f"{path}: the weights lack {len(report['missing_keys'])} of the model's tensors")
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
        raise ModelError(f"{path}: the processor must have a tokenizer and an image processor")
    _check_end_token(path, model, processor.tokenizer)
    return model.to(device).eval().requires_grad_(requires_grad=False), processor


def _pick_dtype(params: ScorerParams, device: torch.device) -> torch.dtype | None:
    """Return the type of the weights; None: as they were saved. A CPU is slow at half precision."""
    if params.dtype == "auto":
        return None if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[params.dtype]


def name_encoder(params: ScorerParams) -> str:
    """Return the folder's hash; half precision that was asked for gives other vectors, so another name.

    Raises:
        ModelError: there is no such folder.
    """
    digest = compute_model_digest(resolve_model_path(params.path))
    return digest if params.dtype in ("auto", "float32") else f"{digest}-{params.dtype}"


def fuse(image_ND: F32, text_ND: F32) -> F32:
    """Return the normalised sum of image and text features (paper: how a candidate is embedded)."""
    return normalise(image_ND + text_ND)


def normalise(rows_ND: F32) -> F32:
    """Return the rows scaled to length 1.

    Raises:
        ModelError: a row has no direction (zero, infinite or not a number).
    """
    norms_N1 = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    if not bool(np.all(np.isfinite(norms_N1) & (norms_N1 > _MIN_NORM))):
        raise ModelError("the encoder gave a vector without direction (zero or not finite)")
    return cast("F32", (rows_ND / norms_N1).astype(np.float32, copy=False))


@dataclass(frozen=True, slots=True)
class PictureTask:
    """Work for a thread: `load` returns `num_images` pictures, already at the encoder's input size."""

    num_images: int
    load: Callable[[], Sequence[Image.Image]]


def encode_in_stream(encoder: Encoder, tasks: Iterable[PictureTask], *, batch_size: int) -> Iterator[F32]:
    """Decode and crop in threads while the model works on the batch before.

    Full batches go through the model whatever the sizes of the tasks; about two batches of pictures are held.

    Yields:
        One (num_images, D) array per task, in the order of the tasks.
    """
    buffer: list[Image.Image] = []
    counts: deque[int] = deque()
    ready_ND = np.empty((0, encoder.dim), dtype=np.float32)
    for images in _load_ahead(tasks, max_images=2 * batch_size):
        counts.append(len(images))
        buffer.extend(images)
        while len(buffer) >= batch_size:
            ready_ND = np.concatenate([ready_ND, encoder.encode_images(buffer[:batch_size])])
            del buffer[:batch_size]
        while counts and counts[0] <= len(ready_ND):
            num_rows = counts.popleft()
            yield ready_ND[:num_rows]
            ready_ND = ready_ND[num_rows:]
    if buffer:
        ready_ND = np.concatenate([ready_ND, encoder.encode_images(buffer)])
    for num_rows in counts:
        yield ready_ND[:num_rows]
        ready_ND = ready_ND[num_rows:]


def _load_ahead(tasks: Iterable[PictureTask], *, max_images: int) -> Iterator[Sequence[Image.Image]]:
    pool = ThreadPoolExecutor(max_workers=_NUM_WORKERS, thread_name_prefix="pictures")
    waiting: deque[tuple[int, Future[Sequence[Image.Image]]]] = deque()
    num_waiting = 0
    try:
        for task in tasks:
            waiting.append((task.num_images, pool.submit(task.load)))
            num_waiting += task.num_images
            while num_waiting > max_images:
                num_images, future = waiting.popleft()
                num_waiting -= num_images
                yield future.result()
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_family(path: Path) -> None:
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        family = AutoModel._model_mapping[type(config)]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: config.json names no known model family: {write_on_one_line(error)}") from error
    methods = ("get_image_features", "get_text_features")
    if not all(hasattr(family, method) for method in methods):
        raise ModelError(
            f"{path}: the scorer must be an encoder of pictures ({', '.join(sorted(BACKBONES))}) or of the CLIP "
            f"family, this is {config.model_type}"
        )
    if not hasattr(config.vision_config, "image_size"):
        raise ModelError(
            f"{path}: {config.model_type} takes pictures of any shape (NaFlex), which is not supported; take the same "
            "model's checkpoint of a fixed size"
        )


def _check_end_token(path: Path, model: Untyped, tokenizer: Untyped) -> None:
    """CLIP reads a text at its end token: without one every text would get the same vector."""
    if model.config.model_type != "clip":
        return
    end_id = model.config.text_config.eos_token_id
    # 2 is what old checkpoints say: transformers then reads at the largest id instead.
    if end_id != 2 and end_id not in tokenizer("a")["input_ids"]:
        raise ModelError(f"{path}: the tokenizer ends no text with token {end_id}, where CLIP reads it")


def _read_normalisation(image_processor: Untyped, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factor and offset per channel: the model was trained on `pixel * factor + offset`."""
    factor = float(image_processor.rescale_factor) if image_processor.do_rescale else 1.0
    if not image_processor.do_normalize:
        return torch.full((3,), factor, device=device), torch.zeros(3, device=device)
    mean_C = torch.tensor(image_processor.image_mean, dtype=torch.float32, device=device)
    deviation_C = torch.tensor(image_processor.image_std, dtype=torch.float32, device=device)
    return factor / deviation_C, -mean_C / deviation_C


def _get_features(output: Untyped) -> torch.Tensor:
    """Transformers 5 returns an output whose pooled part is projected; before, it was the tensor itself."""
    return cast("torch.Tensor", output if isinstance(output, torch.Tensor) else output.pooler_output)
