"""Labels, warm-up and r-GRPO."""
