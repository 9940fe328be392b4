"""The lowest scores of each row: an exact count, found without sorting."""
