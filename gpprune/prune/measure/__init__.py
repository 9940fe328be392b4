"""What calibration measures of each linear layer: one table of statistics' measurers."""
