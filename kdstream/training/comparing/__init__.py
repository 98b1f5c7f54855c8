"""Comparing: which method serves a data set best, and whether the difference is real."""
