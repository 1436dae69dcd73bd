"""Raw data as it is published: rows, archives, picture ids."""
