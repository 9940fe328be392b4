"""Primitives of a value a weight: what they compute, how far they reach, what sympy calls them."""
