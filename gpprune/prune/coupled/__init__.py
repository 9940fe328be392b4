"""What is done along the coupled axes of a model: channels permuted, units chosen to go."""
