"""The procedural world: how pictures are drawn and what is asked about them."""
