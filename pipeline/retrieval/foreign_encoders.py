"""Dual encoders that are no class of transformers, adapted to what `ClipEncoder` reads.

- open_clip folders (`open_clip_config.json` and `open_clip_model.safetensors`), with the package open_clip.
- Folders that bring their own Python, such as EVA-CLIP-8B. That code runs only if `scorer.trust_remote_code` says so
  and if the folder was fetched at the commit that `scorer.revision` names.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from transformers import AutoModel, AutoTokenizer, BatchEncoding

from pipeline.errors import ModelError
from pipeline.files.store import read_json
from pipeline.models.plain_text import PlainText, list_markers
from pipeline.retrieval.image_encoders import describe_normalisation

Untyped = Any
"""A class of another library, whose attributes depend on the model."""

_OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
_OPEN_CLIP_WEIGHTS: Final = "open_clip_model.safetensors"
# OpenAI's CLIP, whose normalisation EVA-CLIP and most of open_clip share; a folder's own figures go before.
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)


class AdaptedModel:
    """A model with `encode_image` and `encode_text`, under the names that transformers gives them.

    Args:
        model: the model itself.
        model_type: name of its family.
        image_size: side of its square input.
        max_tokens: longest text.
    """

    def __init__(self, model: Untyped, *, model_type: str, image_size: int, max_tokens: int) -> None:
        self._model = model
        self.config = SimpleNamespace(
            model_type=model_type,
            vision_config=SimpleNamespace(image_size=image_size),
            text_config=SimpleNamespace(max_position_embeddings=max_tokens),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(iter(self._model.parameters())).dtype  # type: ignore[no-any-return]

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return one vector per picture."""
        return self._model.encode_image(pixel_values)  # type: ignore[no-any-return]

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return one vector per text; these models find a text's end by themselves."""
        return self._model.encode_text(input_ids)  # type: ignore[no-any-return]


class _OpenClipTokenizer:
    """A tokenizer of open_clip, called as one of transformers: every text has the model's full length.

    Args:
        tokenizer: a SimpleTokenizer, or an HFTokenizer around one of transformers.
    """

    def __init__(self, tokenizer: Untyped) -> None:
        self._tokenizer = tokenizer
        inner = getattr(tokenizer, "tokenizer", None)
        self.added_tokens_decoder: dict[int, Untyped] = {} if inner is None else inner.added_tokens_decoder
        self.all_special_tokens: list[str] = (
            [tokenizer.decoder[row] for row in tokenizer.all_special_ids] if inner is None else inner.all_special_tokens
        )

        self._as_plain_text = PlainText(list_markers(self))
        self._resolve = _resolve_entities if inner is None else str

    def __call__(self, texts: Sequence[str], **_: object) -> BatchEncoding:
        return BatchEncoding({"input_ids": self._tokenizer([self._as_plain_text(self._resolve(t)) for t in texts])})


def _resolve_entities(text: str) -> str:
    """Return a text without HTML entities, as a SimpleTokenizer reads it: they could spell a special token."""
    while (resolved := html.unescape(text)) != text:
        text = resolved
    return text


def is_open_clip(folder: Path) -> bool:
    """Return whether a folder holds a model of open_clip's own format."""
    return (folder / _OPEN_CLIP_CONFIG).is_file()


def load_open_clip(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[AdaptedModel, Untyped]:
    """Return model and processor of an open_clip folder.

    Raises:
        ModelError: the package is not installed, the weights are no safetensors, or the folder is broken.
    """
    weights = folder / _OPEN_CLIP_WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{folder}: holds no {_OPEN_CLIP_WEIGHTS}; other formats can run code when opened")
    try:
        import open_clip
    except ImportError as error:
        raise ModelError(f"{folder}: is an open_clip model; install the extra open-clip: {error}") from error
    content = read_json(folder / _OPEN_CLIP_CONFIG)
    try:
        config = dict(content["model_cfg"])
        custom = bool(config.pop("custom_text", False)) or "hf_model_name" in config["text_cfg"]
        if "hf_model_name" in config["text_cfg"]:  # its weights are in the file, not on the hub
            config["text_cfg"] = {**config["text_cfg"], "hf_model_pretrained": False}
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
        open_clip.load_checkpoint(model, str(weights))
        max_tokens = int(config["text_cfg"].get("context_length", 77))
        own_tokenizer = "hf_tokenizer_name" in config["text_cfg"]
        tokenizer = (
            open_clip.tokenizer.HFTokenizer(str(folder), context_length=max_tokens)
            if own_tokenizer
            else open_clip.SimpleTokenizer(context_length=max_tokens)
        )
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {' '.join(str(error).split())}") from error
    model = model.to(device, dtype).eval().requires_grad_(requires_grad=False)
    adapted = AdaptedModel(
        model, model_type="open_clip", image_size=int(config["vision_cfg"]["image_size"]), max_tokens=max_tokens
    )
    figures = content.get("preprocess_cfg", {})
    return adapted, _build_processor(_OpenClipTokenizer(tokenizer), figures.get("mean"), figures.get("std"))


def check_revision(folder: Path, revision: str) -> None:
    """Refuse a folder whose Python was not fetched at the pinned commit.

    `hf download REPOSITORY --revision COMMIT --local-dir FOLDER` notes the commit of every file beside it.

    Raises:
        ModelError: a file of Python, or the configuration that names it, has no note or another commit's.
    """
    for file in (folder / "config.json", *sorted(folder.glob("*.py"))):
        note = folder / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
        if not note.is_file():
            raise ModelError(
                f"{file}: its commit is not known, so its code is not run; fetch the folder with "
                f"`hf download REPOSITORY --revision {revision} --local-dir {folder}`"
            )
        found = note.read_text(encoding="utf-8").split("\n", 1)[0].strip()
        if found != revision:
            raise ModelError(f"{file}: is of commit {found}, but scorer.revision is {revision}")


def load_remote(folder: Path, device: torch.device, dtype: torch.dtype | str) -> tuple[AdaptedModel, Untyped]:
    """Return model and processor of a folder that brings its own Python; call `check_revision` first.

    Raises:
        ModelError: the folder is broken, or its model does not embed pictures and texts.
    """
    try:
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=True, dtype=dtype
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {' '.join(str(error).split())}") from error
    if not all(hasattr(model, name) for name in ("encode_image", "encode_text")):
        raise ModelError(f"{folder}: its model has no encode_image and encode_text")
    model = model.to(device).eval().requires_grad_(requires_grad=False)
    adapted = AdaptedModel(
        model,
        model_type=str(model.config.model_type),
        image_size=int(model.config.vision_config.image_size),
        max_tokens=int(model.config.text_config.max_position_embeddings),
    )
    path = folder / "preprocessor_config.json"
    figures = read_json(path) if path.is_file() else {}
    return adapted, _build_processor(tokenizer, figures.get("image_mean"), figures.get("image_std"))


def _build_processor(tokenizer: Untyped, mean: Sequence[float] | None, std: Sequence[float] | None) -> Untyped:
    return SimpleNamespace(tokenizer=tokenizer, image_processor=describe_normalisation(mean or _MEAN, std or _STD))
