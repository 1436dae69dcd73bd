"""The trained policy asked in other ways: forced, sampled, under a threshold, under another scorer."""
