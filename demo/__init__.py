"""The demo: a procedural picture encyclopedia, and the recipe and weights of the tiny base models."""
