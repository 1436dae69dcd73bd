"""`region-r1 plan`: what a run would do, with which models, in how much memory; no weight is loaded."""
