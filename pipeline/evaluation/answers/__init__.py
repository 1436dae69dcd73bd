"""The policies' answers: asked once, by the stage answer, and read back by evaluate, which loads no policy."""
