"""What is asked of predictions: scoring, matching, the set loss."""
