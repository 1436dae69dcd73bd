"""Model folders: whether they are safe to open, where and in which precision they run."""
