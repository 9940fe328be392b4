"""What calibration measures of each linear layer."""
