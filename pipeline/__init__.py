"""Region-R1: a query-side policy that crops the query image before multi-modal re-ranking."""
