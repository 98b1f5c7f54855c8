"""The functions that ``import kdstream`` offers for whole jobs: one file each."""
