"""params.yaml as frozen pydantic models: the one home of every default, checked before any weight loads."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigError
from pipeline.workspace import is_plain_relative
from pipeline.yaml_file import read_mapping

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
SourceName = Literal["jsonl", "evqa", "infoseek", "echosight"]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


# What NumPy's older generator takes, which transformers seeds too.
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _check_relative(path: str) -> str:
    if not is_plain_relative(path):
        raise ValueError("must be a path inside data/: relative, without `..` or `\\`")
    return _check_printable(path)


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not hold control characters")
    return text


def _check_model_path(path: str) -> str:
    """Refuse what DVC or a stage would refuse later: no folder of its own, or one that a stage writes."""
    parts = PurePosixPath(path).parts
    if "://" in path or parts[:1] == ("~",):
        raise ValueError("must be a folder on this machine, with no `~` to expand")
    if not set(parts) - {"..", "/"}:
        raise ValueError("must be a folder of its own: DVC refuses one that holds the outputs")
    if parts[0] == _WRITTEN_BY_STAGES:
        raise ValueError(f"must not lie in {_WRITTEN_BY_STAGES}/, where stages write: copy it out, to models/ say")
    return _check_printable(path)


def _check_model_name(name: str) -> str:
    if re.fullmatch(r"\w([\w .-]*\w)?", name) is None:
        raise ValueError(
            "must be letters, digits, `_`, and inside also `.`, `-` and spaces: "
            "MLflow refuses `/` and `:`, and its addresses (models:/NAME@champion) other signs"
        )
    return name


RelativePath = Annotated[str, Field(min_length=1), AfterValidator(_check_relative)]


ModelPath = Annotated[
    str,
    Field(min_length=1, description="model folder as dvc.yaml reads it too: relative to the checkout, or absolute"),
    AfterValidator(_check_model_path),
]

NO_RESULT: Final = frozenset({"batches", "demo", "flow"})
"""Sections that change no result: dvc.yaml names all others. data.dvc stands for `demo`."""

BESIDE_EVALUATION: Final = {*NO_RESULT, "register_", "ablation"}
"""Sections that no stage up to evaluate depends on."""

MODEL_FOLDERS: Final = (("scorer", "path"), ("policy", "path"), ("evaluate", "transfer_scorer"))
"""Parameters that dvc.yaml takes a stage's dependency from."""

_WRITTEN_BY_STAGES: Final = "artifacts"
_MAX_GRID_BOXES: Final = 10_000


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataParams(_Section):
    """Where the raw data lie and how much of them may be unusable; every path is relative to data/."""

    source: SourceName = "jsonl"
    annotations: dict[Literal["train", "val", "test"], RelativePath] = Field(
        default={}, description="annotation file of each split; empty takes the published names"
    )
    knowledge_base: RelativePath | None = Field(default=None, description="null takes the published name")
    images_dir: RelativePath = Field(default="images", description="folder that image ids are looked up in")
    faiss_index: RelativePath | None = Field(
        default=None, description="folder of EchoSight's FAISS index; null embeds the pictures here"
    )
    val_share: Annotated[float, Field(ge=0.0, le=0.5)] = Field(
        default=0.02,
        description="published sources without a val file: share of the training entities whose queries become val",
    )
    val_seed: int = Field(default=7, description="which entities those are")
    max_text_chars: PositiveInt = Field(default=2000, description="what is kept of a published article")
    max_question_chars: PositiveInt = Field(
        default=1000, description="longer questions are rejected; the published sets' longest have some hundreds"
    )
    max_reject_rate: Fraction = Field(default=0.01, description="share of rows that prepare may reject")
    max_missing_image_rate: Fraction = Field(
        default=0.02, description="share of published query pictures that may lack a file"
    )
    max_image_pixels: PositiveInt = Field(default=50_000_000, description="larger images are rejected unread")

    @model_validator(mode="after")
    def _own_data_name_their_files(self) -> DataParams:
        given = [name for name in ("annotations", "knowledge_base", "faiss_index") if getattr(self, name)]
        if self.source == "jsonl" and given:
            raise ValueError(f"data.{given[0]} is for published sources; data.source is jsonl")
        if self.source == "infoseek" and self.faiss_index:
            raise ValueError("data.faiss_index needs a knowledge base in EchoSight's form: source evqa or echosight")
        if len(set(self.annotations.values())) != len(self.annotations):
            raise ValueError("data.annotations names one file for several splits")
        return self


class DemoParams(_Section):
    """The procedural world that `data/` is regenerated from."""

    seed: Annotated[int, Field(ge=0)] = 2026
    num_entities: Annotated[int, Field(ge=12, le=2160)] = 320
    num_train: PositiveInt = 2400
    num_val: PositiveInt = 400
    num_test: PositiveInt = 1000
    close_up_share: Fraction = 0.25


class StatedSize(_Section):
    """A model's size for `region-r1 plan`, as long as its folder is not there to be counted."""

    parameters: PositiveInt
    source: Annotated[str, Field(min_length=1)] = Field(description="who says so")
    num_layers: PositiveInt | None = Field(default=None, description="of the text decoder, to estimate activations")
    hidden_size: PositiveInt | None = Field(default=None, description="of the text decoder, to estimate activations")


class ScorerParams(_Section):
    """The frozen encoder that retrieves and re-ranks."""

    path: ModelPath = "demo/models/tiny-clip"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="of the weights; auto: float32 on a CPU, as saved on a GPU"
    )
    trust_remote_code: bool = Field(default=False, description="run Python that lies in the model's folder")
    revision: Commit | None = Field(
        default=None, description="commit of the hub's repository that the folder's Python must come from"
    )
    size: StatedSize | None = None

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> ScorerParams:
        if self.trust_remote_code != (self.revision is not None):
            raise ValueError("scorer.trust_remote_code and scorer.revision (40 hex digits) must be given together")
        return self


class RetrieveParams(_Section):
    """Candidate retrieval by the full image."""

    pool_size: Annotated[int, Field(ge=2)] = Field(default=20, description="K of the paper")
    train_pools: Literal["drop", "inject"] = Field(
        default="drop",
        description="a training pool without a positive is dropped (the paper), or its last candidate gives way to one",
    )
    search_again: Literal["off", "union", "replace"] = Field(
        default="union",
        description="what the policy's view searches the index for: nothing, candidates beside the full image's, or "
        "candidates in their place",
    )
    num_candidates: Annotated[int, Field(ge=2)] = Field(
        default=20, description="documents that a view's own search brings"
    )


class LoraParams(_Section):
    """A low-rank adapter on all linear layers (the paper's numbers)."""

    rank: PositiveInt = 8
    alpha: PositiveInt = 32
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1


class PolicyParams(_Section):
    """The vision-language model that decides."""

    path: ModelPath = "demo/models/tiny-llava"
    prompt: Literal["question", "instruct"] = Field(
        default="question", description="question alone (tiny models) or the paper-style instruction"
    )
    max_new_tokens: PositiveInt = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of the weights; auto: float32, but bfloat16 below a LoRA adapter on a GPU"
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto", description="auto: what transformers takes, SDPA where the model has it"
    )
    engine: Literal["auto", "transformers", "vllm"] = Field(
        default="auto",
        description="what generates answers in evaluation; auto: vLLM where it is installed beside a GPU, "
        "transformers for built-in models and everywhere else",
    )
    lora: LoraParams | None = Field(default=None, description="train an adapter; without it all weights are trained")
    size: StatedSize | None = None


class SearchParams(_Section):
    """Region search: the multi-scale grid of boxes that the frozen scorer is asked about."""

    scales: tuple[Fraction, ...] = Field(default=(0.3, 0.45), description="box side over image side")
    stride: Annotated[float, Field(gt=0.0, le=1.0)] = Field(default=0.5, description="step between boxes, in box sides")
    num_refinements: Annotated[int, Field(ge=0)] = Field(
        default=2, description="times that the neighbours of the best box so far are tried"
    )
    min_gain: Annotated[float, Field(ge=0.0)] = Field(
        default=0.05, description="reward that a crop must earn over the full image to become a label"
    )

    @model_validator(mode="after")
    def _some_scale_crops(self) -> SearchParams:
        if not self.scales or any(not 0.0 < scale < 1.0 for scale in self.scales):
            raise ValueError("search.scales must name at least one side, each above 0 and below 1")
        num_boxes = sum((1 + math.ceil((1 - scale) / (self.stride * scale))) ** 2 for scale in self.scales)
        if num_boxes > _MAX_GRID_BOXES:
            raise ValueError(
                f"search.scales and search.stride make {num_boxes:,} boxes of each picture, at most "
                f"{_MAX_GRID_BOXES:,} are tried; raise the stride or the least scale"
            )
        return self


class WarmupParams(_Section):
    """SFT on labels that the frozen scorer approves of."""

    num_queries: PositiveInt = Field(default=2400, description="training queries that are labelled, at most")
    labels: Literal["neighbourhood", "region_search"] = Field(
        default="neighbourhood",
        description="which boxes are tried: those near what the base policy says, or a grid over the whole picture",
    )
    num_samples: PositiveInt = Field(default=8, description="regions that the policy draws beside its likeliest")
    min_gain_elsewhere: Annotated[float, Field(ge=0.0)] = Field(
        default=0.5, description="reward by which a drawn box elsewhere must beat the likeliest to become the label"
    )
    epochs: PositiveFloat = 4.0
    learning_rate: PositiveFloat = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    batch_size: PositiveInt = 32


class RewardParams(_Section):
    """The paper's reward (section 3): weights, and the floor and scale that only its code shows."""

    on: Literal["pool", "search"] = Field(
        default="pool",
        description="what a view ranks: the full image's pool (the paper), or the whole index, searched with the view",
    )
    depth: PositiveInt = Field(default=100, description="on search: last rank in the index that counts as found")
    weight_mrr: float = 0.2
    weight_ndcg: float = 0.2
    weight_rank: float = 0.2
    weight_margin: float = 0.4
    floor: float = Field(default=-0.05, description="lower clip of the weighted sum")
    scale: PositiveFloat = Field(default=5.0, description="factor after the clip")
    full_when_first: float = Field(default=1.0, description="reward of FULL when the full image ranks a positive first")
    full_otherwise: float = 0.0
    malformed: float = -1.0


class TrainParams(_Section):
    """r-GRPO (paper section 3): decision-balanced groups, factorised advantages, KL to the SFT policy."""

    max_steps: PositiveInt = 300
    queries_per_step: PositiveInt = 8
    group_size: Annotated[int, Field(ge=2)] = 8
    num_region: Annotated[int, Field(ge=0)] = Field(default=6, description="rows of a group forced to REGION")
    num_full: Annotated[int, Field(ge=0)] = Field(default=1, description="rows of a group forced to FULL")
    factorised: bool = Field(default=True, description="decision and box tokens carry advantages of their own")
    decision_temperature: PositiveFloat = Field(
        default=0.25, description="difference in reward at which the better decision is wanted with odds of e to 1"
    )
    learning_rate: PositiveFloat = 5e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    beta: Annotated[float, Field(ge=0.0)] = Field(default=0.04, description="weight of the KL to the SFT policy")
    temperature: PositiveFloat = 1.0
    updates_per_generation: PositiveInt = 1
    save_steps: PositiveInt = 25

    @model_validator(mode="after")
    def _arms_fit_the_group(self) -> TrainParams:
        forced = self.num_region + self.num_full
        if forced > self.group_size:
            raise ValueError(
                f"train.num_region + train.num_full = {forced} exceeds train.group_size = {self.group_size}; "
                "lower one arm"
            )
        if (self.num_region == 0) != (self.num_full == 0):
            raise ValueError("train.num_region and train.num_full must both be 0 (stock GRPO) or both be positive")
        if self.save_steps % self.updates_per_generation:
            raise ValueError(
                f"train.save_steps = {self.save_steps} must be a multiple of train.updates_per_generation = "
                f"{self.updates_per_generation}: a checkpoint inside a generation buffer cannot be resumed exactly"
            )
        if self.factorised and forced == 0:
            raise ValueError("train.factorised needs both arms: set train.num_region and train.num_full above 0")
        return self


class AnswerParams(_Section):
    """What the policies are asked is fixed, but for how often."""

    num_samples: PositiveInt = Field(default=8, description="crops sampled per query for label-free selection")


class EvaluateParams(_Section):
    """Methods are fixed; how sure we want to be of their differences, and what harm may be, are not."""

    num_resamples: Annotated[int, Field(ge=100)] = Field(default=2000, description="bootstrap and randomisation draws")
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    harm_bound: Fraction = Field(
        default=0.02, description="highest share of all pictures that the threshold on p(REGION) may harm"
    )
    harm_level: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        default=0.05, description="chance that the threshold chosen on val breaks that bound all the same"
    )
    transfer_scorer: ModelPath = Field(
        default="demo/models/tiny-siglip",
        description="folder of a second frozen scorer that re-ranks the same pools; scorer.path again for none",
    )


class RegisterParams(_Section):
    """Entry of the model registry."""

    model_name: Annotated[str, Field(max_length=256), AfterValidator(_check_model_name)] = "region-r1"


class AblationParams(_Section):
    """How long and how often each arm of the ablations is trained.

    The seeds vary what r-GRPO draws: the order of the queries and the sampled completions. Data, pools and the SFT
    policy are shared by all of them, so intervals over the seeds say nothing about another warm-up or another world.
    """

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (7, 8, 9)
    max_steps: PositiveInt = Field(default=60, description="r-GRPO steps of every arm, in place of train.max_steps")

    @model_validator(mode="after")
    def _seeds_differ(self) -> AblationParams:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"ablation.seeds must differ from one another, got {list(self.seeds)}")
        return self


class BatchParams(_Section):
    """How much goes through a model at once: what memory allows.

    No result depends on it, so no stage of dvc.yaml names this section and no checkpoint is named by it: lowered after
    memory ran out, it makes nothing stale.
    """

    policy: PositiveInt = Field(default=64, description="answers decoded together at inference")
    scorer: PositiveInt = Field(default=256, description="pictures or texts embedded together")


class FlowParams(_Section):
    """How the Prefect flow places work, and how long it waits: running, in a queue, for another run."""

    placement: Literal["local", "pools"] = "local"
    stage_timeout_s: PositiveInt = Field(default=3600, description="how long a stage may run once it has begun")
    queue_timeout_s: PositiveInt = Field(
        default=86_400, description="how long a stage may wait for a worker of its pool (placement pools)"
    )
    busy_timeout_s: Annotated[int, Field(ge=0)] = Field(
        default=0, description="how long a run waits for another one in the same checkout; 0 refuses at once"
    )


class Params(_Section):
    """All parameters of a run; the sections are what dvc.yaml's stages depend on."""

    seed: Seed = 7
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="a stage's threads on the CPU; last digits depend on it"
    )
    data: DataParams = DataParams()
    demo: DemoParams = DemoParams()
    scorer: ScorerParams = ScorerParams()
    retrieve: RetrieveParams = RetrieveParams()
    policy: PolicyParams = PolicyParams()
    search: SearchParams = SearchParams()
    warmup: WarmupParams = WarmupParams()
    reward: RewardParams = RewardParams()
    train: TrainParams = TrainParams()
    answer: AnswerParams = AnswerParams()
    evaluate: EvaluateParams = EvaluateParams()
    register_: RegisterParams = Field(default=RegisterParams(), alias="register")
    ablation: AblationParams = AblationParams()
    batches: BatchParams = BatchParams()
    flow: FlowParams = FlowParams()

    @property
    def second_scorer(self) -> str | None:
        """Folder of the second scorer, or None: the first one's would see what the first one sees."""
        path = self.evaluate.transfer_scorer
        return None if path == self.scorer.path else path

    def sha256(self) -> str:
        """Return the hash that names the parameters behind an evaluation, whatever order or spelling the file used.

        `report.json` holds it, so it must not change with a section that the stages up to evaluate do not read: their
        outputs would differ from dvc.lock in a fresh clone although nothing in them had changed.
        """
        tree = self.model_dump(mode="json", by_alias=True, exclude=BESIDE_EVALUATION)
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def load_params(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        ConfigError: the file is missing, no YAML mapping, or a name or value in it is wrong.
    """
    return _validate(path, read_mapping(path))


def load_params_for_dvc(path: Path) -> Params:
    """Read and check a parameter file that DVC reads too: it knows no defaults, so what it looks up must stand there.

    Raises:
        ConfigError: as `load_params`, or something that dvc.yaml names is left to its default.
    """
    raw = read_mapping(path)
    params = _validate(path, raw)
    sections = [name for name in Params().model_dump(by_alias=True) if name not in NO_RESULT and name not in raw]
    folders = [
        f"{section}.{name}"
        for section, name in MODEL_FOLDERS
        if section in raw and name not in (raw[section] if isinstance(raw[section], dict) else {})
    ]
    if sections or folders:
        missing = ", ".join([*sections, *folders])
        raise ConfigError(f"{path}: DVC reads this file without our defaults, write out: {missing}")
    return params


def _validate(path: Path, raw: dict[str, Any]) -> Params:
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_describe(error)}") from error
    if fault := _find_untrainable(params.policy):
        raise ConfigError(f"{path}: {fault}")
    return params


def _find_untrainable(policy: PolicyParams) -> str | None:
    """Return why train or evaluate would refuse the policy on any machine."""
    if policy.dtype == "bfloat16" and policy.lora is None:
        return "policy.dtype is bfloat16, but without policy.lora all weights are trained, in float32"
    half = policy.dtype == "bfloat16" or (policy.dtype == "auto" and policy.lora is not None)
    if policy.attention == "flash_attention_2" and (policy.device == "cpu" or not half):
        return "policy.attention is flash_attention_2, which needs a GPU and weights in bfloat16"
    if policy.engine == "vllm" and policy.device == "cpu":
        return "policy.engine is vllm, which needs a GPU, but policy.device is cpu"
    return None


def take_source(data: DataParams, source: SourceName) -> DataParams:
    """Return the same parameters for another kind of data.

    Raises:
        ConfigError: a parameter among them is for the first kind only.
    """
    try:
        return DataParams.model_validate({**data.model_dump(), "source": source})
    except ValidationError as error:
        raise ConfigError(f"source {source}: {_describe(error)}") from error


def _describe(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        message = "unknown parameter" if problem["type"] == "extra_forbidden" else problem["msg"]
        problems.append(f"{name}: {message}" if name else message)
    return "; ".join(problems)
