"""Everything that touches weights: the frozen scorer, the policy and their training."""
