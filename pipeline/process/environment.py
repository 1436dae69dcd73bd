"""How a process of ours behaves: no telemetry, no network for models, one readable log on stderr, exit codes.

Standard library only; `prepare_process` must run before any heavy import.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Final

from pipeline.disk_faults import explain

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
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# What libraries say of one another, and nobody but their authors can fix.
_LIBRARIES_OF_LIBRARIES: Final = (
    # trl 1.16 and peft 0.21 ask transformers 5.23 by its old names, trl before every generation.
    (r"`(is_gradient_checkpointing|gradient_checkpointing_(enable|disable))` is deprecated", FutureWarning),
    # mlflow.pyfunc, on import, about models of MLflow's own.
    (r".*type hint is inferred as AnyType", UserWarning),
)
_LOCAL_MODELS: Final = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def prepare_process() -> None:
    """Set the environment that libraries read at import, and send our log lines to stderr, others' warnings too.

    Left out is what libraries say of one another.
    """
    os.environ.update(TELEMETRY_OFF)
    os.environ.update(_LOCAL_MODELS)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("pipeline").setLevel(logging.INFO)
    for message, category in _LIBRARIES_OF_LIBRARIES:
        warnings.filterwarnings("ignore", message, category)


def limit_threads(num_threads: int) -> None:
    """Let libraries compute on so many threads, whatever the machine has: those imported already, and those to come.

    The order of a sum follows from it, and training magnifies last digits: it is a parameter, so that a result is one.
    """
    os.environ.update(dict.fromkeys(_THREADS, str(num_threads)))  # read at a library's first import
    from threadpoolctl import threadpool_limits

    threadpool_limits(num_threads)


def run_to_exit_code(work: Callable[[], object]) -> int:
    """Prepare this process, do the work and return the exit code.

    0 done, 2 something the user can fix, a full disk too (one line on stderr), 130 interrupted; SIGTERM exits with
    143. A fault of ours passes through with its traceback.
    """
    prepare_process()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        work()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.stderr.write(f"error: {line}\n")
        return 2
    return 0


def _terminate(signal_number: int, frame: object) -> None:
    raise SystemExit(128 + signal_number)
