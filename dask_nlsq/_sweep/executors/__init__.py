"""Who runs tasks: this process, or the workers of a cluster."""
