"""The model: loaded, its decoder blocks and linear layers found, run block by block."""
