"""Searching again: what every method finds when its view searches the whole index, on all queries."""
