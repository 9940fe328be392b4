"""Training under the mask."""
