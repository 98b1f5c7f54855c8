"""What a person sees of a training: progress on the terminal, a page afterwards."""
