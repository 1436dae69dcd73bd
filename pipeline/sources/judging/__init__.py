"""What is kept of raw rows, and why the rest is not."""
