"""`python -m benchmarks`: measure, print a table, write bench.json and bench.svg.

A goal that is missed is a result, not a failure. Exit codes are those of `python -m pipeline STAGE`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import load_params
from pipeline.process.environment import run_to_exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="method and models (params.yaml)")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="where bench.json goes (artifacts)")
    options = parser.parse_args(arguments)
    return run_to_exit_code(lambda: measure(options.params, options.out))


def measure(params_path: Path, out_dir: Path) -> None:
    """Measure with these parameters, print the table and write bench.json and bench.svg.

    Raises:
        RegionR1Error: bad parameters, or a model that cannot be loaded.
    """
    params = load_params(params_path)
    from rich.console import Console

    from benchmarks.plot import save_plot
    from benchmarks.run import Workload, run_bench
    from benchmarks.table import print_report
    from pipeline.files.store import write_json

    with tempfile.TemporaryDirectory(prefix="region-r1-bench-") as scratch:
        report = run_bench(params, Workload(), Path(scratch))
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / "bench.json", report)
    save_plot(report, out_dir / "bench.svg")
    print_report(report, Console())


if __name__ == "__main__":
    sys.exit(main())
