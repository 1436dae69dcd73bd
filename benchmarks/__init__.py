"""What the pipeline costs, measured; each module runs by itself: `python -m benchmarks.NAME`."""
