"""Where a fit begins: what was saved, a search, a pass in batches, a sample, an optimizer."""
