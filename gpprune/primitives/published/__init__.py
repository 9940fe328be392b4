"""The published formulas, and readers of the notations they were published in."""
