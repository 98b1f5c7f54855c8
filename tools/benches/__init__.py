"""The benches of tools/bench.py: what they measure, one file a bench."""
