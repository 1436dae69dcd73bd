"""What the pipeline costs, measured: `make bench` (reward, training step); `python -m benchmarks.sources` (readers)."""
