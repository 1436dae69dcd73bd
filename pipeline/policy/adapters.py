"""LoRA adapters (paper, section 4): a policy that is trained through few extra weights on a frozen base.

A folder of such a policy holds the adapter and the processor, not the base; `base.json` names the base's digest, so
that an adapter never meets other weights than those that it was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from peft import LoraConfig, PeftModel, get_peft_model

from pipeline.config import LoraParams
from pipeline.errors import ModelError
from pipeline.files.store import read_json, write_json
from pipeline.models.model_folder import check_digest, note_base

_CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"
_ADAPTER: Final = "default"


def attach_adapter(model: Any, params: LoraParams) -> PeftModel:  # noqa: ANN401 - any transformers model
    """Return the model with a fresh adapter on all its linear layers; only the adapter is trained."""
    config = LoraConfig(
        r=params.rank, lora_alpha=params.alpha, lora_dropout=params.dropout, target_modules="all-linear"
    )
    return get_peft_model(model, config)


def has_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter instead of a whole model."""
    return (folder / _CONFIG).is_file()


def load_adapter(base: Any, folder: Path, base_digest: str) -> PeftModel:  # noqa: ANN401 - any transformers model
    """Put a saved adapter on its base, ready to be trained on.

    Args:
        base: the base model.
        folder: what `save_adapter` wrote.
        base_digest: digest of the base's folder.

    Raises:
        ModelError: the adapter's weights are missing, or it was trained on another base.
    """
    if not (folder / _WEIGHTS).is_file():
        raise ModelError(f"{folder}: holds no {_WEIGHTS}")
    check_digest(folder, base_digest)
    return PeftModel.from_pretrained(base, folder, is_trainable=True)


def save_adapter(model: PeftModel, folder: Path, base_digest: str) -> None:
    """Write the adapter (safetensors) and the digest of its base."""
    model.save_pretrained(str(folder), selected_adapters=[_ADAPTER], safe_serialization=True)
    # peft holds these names as a set and writes them in its order, which differs from process to process.
    config = read_json(folder / _CONFIG)
    write_json(folder / _CONFIG, config | {"target_modules": sorted(config["target_modules"])})
    note_base(folder, base_digest)
