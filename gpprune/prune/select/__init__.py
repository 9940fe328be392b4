"""From scores to masks: groups that compete, and the lowest of each."""
