"""Searching again as the page tells it: words, chart, and the cards of what was won back."""
