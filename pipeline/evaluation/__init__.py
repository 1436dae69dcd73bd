"""What evaluate and register share: the methods compared, the figures they earn, TREC run files."""
