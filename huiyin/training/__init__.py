"""What fits the card, and LLaMA-Factory as a program."""
