"""How the tiny base models are made."""
