"""Mixtures of experts: each expert's matrices as layers, and which of them calibration reaches."""
