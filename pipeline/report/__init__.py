"""The evaluation for people: result table, and one self-contained HTML page."""
