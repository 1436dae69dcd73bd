"""How a process of ours behaves: no telemetry, no network for models, one readable log on stderr.

Standard library only; `prepare_process` must run before any heavy import.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

TELEMETRY_OFF: Final = {
    "DO_NOT_TRACK": "true",  # MLflow takes no other spelling
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "true",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
}
_LOCAL_MODELS: Final = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def prepare_process() -> None:
    """Set the environment that libraries read at import, and send our log lines to stderr, others' warnings too."""
    os.environ.update(TELEMETRY_OFF)
    os.environ.update(_LOCAL_MODELS)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("pipeline").setLevel(logging.INFO)
