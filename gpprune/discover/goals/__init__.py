"""What can be searched for: a metric, an allocation, or both as one formula."""
