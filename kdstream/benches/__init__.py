"""What ``kdstream bench`` measures, one file a bench."""
