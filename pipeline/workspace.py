"""Where things lie: the one place that knows the layout of `data/` and `artifacts/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from pipeline.errors import DataError


@dataclass(frozen=True, slots=True)
class Workspace:
    """Folders of one run.

    Attributes:
        data_dir: raw data (own-data format), versioned by data.dvc.
        artifacts_dir: what the stages write.
        policies_dir: where the trained policies lie; another world's evaluation borrows those of the main run.
    """

    data_dir: Path
    artifacts_dir: Path
    policies_dir: Path

    @classmethod
    def at(cls, root: Path) -> Workspace:
        """Return the workspace of a checkout."""
        return cls(data_dir=root / "data", artifacts_dir=root / "artifacts", policies_dir=root / "artifacts")

    # prepare
    @property
    def tables_dir(self) -> Path:
        """queries, documents, qrels, rejects as Parquet, and the validation report."""
        return self.artifacts_dir / "tables"

    # index
    @property
    def index_dir(self) -> Path:
        """Document vectors, their ids and the FAISS index."""
        return self.artifacts_dir / "index"

    # retrieve
    @property
    def pools_dir(self) -> Path:
        """Pools, baseline outcomes and query vectors."""
        return self.artifacts_dir / "pools"

    # warmup
    @property
    def labels_dir(self) -> Path:
        """Region labels found by region search."""
        return self.artifacts_dir / "labels"

    @property
    def sft_dir(self) -> Path:
        """The policy after SFT."""
        return self.policies_dir / "sft"

    def curve_path(self, stage: str) -> Path:
        """Figures by step of the training that `stage` does: warmup or train."""
        return self.artifacts_dir / "curves" / f"{stage}.parquet"

    # train
    @property
    def policy_dir(self) -> Path:
        """The policy after r-GRPO."""
        return self.policies_dir / "policy"

    @property
    def rollouts_dir(self) -> Path:
        """Sampled completions and their rewards."""
        return self.artifacts_dir / "rollouts"

    @property
    def checkpoints_dir(self) -> Path:
        """What unfinished stages have finished; survives a kill, no stage output."""
        return self.artifacts_dir / "checkpoints"

    # answer
    @property
    def answers_dir(self) -> Path:
        """Every answer of the policies, and whose answers to what they are."""
        return self.artifacts_dir / "answers"

    # evaluate
    @property
    def evaluation_dir(self) -> Path:
        """One row per query and method, report.json, TREC runs."""
        return self.artifacts_dir / "evaluation"

    @property
    def lender_report_path(self) -> Path | None:
        """report.json of the run whose policies are borrowed, with what it chose on its val; None for one's own."""
        if self.policies_dir == self.artifacts_dir:
            return None
        return self.policies_dir / "evaluation" / "report.json"

    # report
    @property
    def report_dir(self) -> Path:
        """The page (report.html) and sample crops."""
        return self.artifacts_dir / "report"

    # register
    @property
    def registration_path(self) -> Path:
        """What was registered, by content; version and verdict are in MLflow and in the provenance."""
        return self.artifacts_dir / "registration.json"

    # ablation
    @property
    def ablation_dir(self) -> Path:
        """One folder per arm of the ablations, and their summary."""
        return self.artifacts_dir / "ablation"

    def metrics_path(self, stage: str) -> Path:
        """Small JSON of a stage's figures, a DVC metrics file."""
        return self.artifacts_dir / "metrics" / f"{stage}.json"

    def provenance_path(self, stage: str) -> Path:
        """What is true of a stage's last run here alone: commit, MLflow run, parameters, times; git and DVC skip it."""
        return self.artifacts_dir / "provenance" / f"{stage}.json"

    @property
    def run_lock_path(self) -> Path:
        """Held by the flow run that is going on; beside it, as JSON, who and where it is."""
        return self.artifacts_dir / "run.lock"


def read_data_md5(data_dir: Path) -> str | None:
    """Return the hash of a data folder from the `.dvc` file beside it, or None without that file.

    Raises:
        DataError: the file is there but names no hash.
    """
    path = data_dir.with_name(f"{data_dir.name}.dvc")
    if not path.is_file():
        return None
    try:
        md5 = yaml.safe_load(path.read_text(encoding="utf-8"))["outs"][0]["md5"]
    except (yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        raise DataError("names no md5 of the data; run `dvc add data`", path=path) from error
    return str(md5)


def is_plain_relative(path: str) -> bool:
    """Return whether a path from a file or a parameter stays inside the folder that it is relative to."""
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts and "\\" not in path
