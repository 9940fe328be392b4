"""How much of each layer goes: formulas, the exact budget, learned allocations."""
