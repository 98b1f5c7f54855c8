"""kdstream's own networks: one file a family."""
