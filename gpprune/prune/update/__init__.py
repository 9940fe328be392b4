"""What happens to the weights that stay: a table of pure functions."""
