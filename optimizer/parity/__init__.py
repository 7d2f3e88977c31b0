"""Parity: whether an engine loses less than its budget, shown by a paired test on held-out data."""
