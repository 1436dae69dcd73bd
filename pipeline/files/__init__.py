"""Files: written whole or not at all, tables, pictures that nobody has vouched for."""
