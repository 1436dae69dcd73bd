"""The model registry: what a new version must beat, and what a version is when it is loaded."""
