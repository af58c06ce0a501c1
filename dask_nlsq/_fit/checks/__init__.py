"""What is asked of the end of a fit before it becomes a result."""
