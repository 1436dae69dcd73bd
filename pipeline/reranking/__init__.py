"""The frozen scorer: how a view of a picture ranks the pool."""
