"""Ablations of r-GRPO: what each part of the method is worth, measured over several seeds."""
