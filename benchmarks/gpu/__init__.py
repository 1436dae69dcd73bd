"""Published model shapes on one GPU."""
