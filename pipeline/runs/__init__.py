"""Runs of a checkout: tracked, locked, compared with what was committed."""
