"""Models larger than memory: the weights of one decoder block at a time, from file to file."""
