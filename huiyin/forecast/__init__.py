"""What is still to do: how much, how long, and whether it fits."""
