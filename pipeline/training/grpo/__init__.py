"""r-GRPO: GRPO with decision-balanced groups (paper section 3), on TRL's GRPOTrainer."""
