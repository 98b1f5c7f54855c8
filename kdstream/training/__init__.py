"""Training: loop, phases, evaluation, checkpoints, and what a person sees of them."""
