"""Plots of a fit: what is drawn from the estimates, and what takes a pass over the rows."""
