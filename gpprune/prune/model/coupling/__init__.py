"""Which axes of which weights are one, found in how a model is wired and proven."""
