"""What is measured of a pruned model: how it predicts, and how far it is from the dense one."""
