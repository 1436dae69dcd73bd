"""How an answer is drawn: settings, openings, ends, lots, and prompts and pictures that rows share."""
