"""The canonical form: formulas that always give the same mask become one formula."""
