"""The reward: ours, the naive way and the floor, on one small world."""
