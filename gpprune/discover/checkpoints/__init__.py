"""Checkpoints in one call: pruned, shrunk, recovered, inspected and judged."""
