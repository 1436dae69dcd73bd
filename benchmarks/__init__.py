"""What the reward and a training step cost, measured side by side in one run: `python -m benchmarks`, `make bench`."""
