"""Frozen encoders and the index of documents: what turns pictures and texts into pools."""
