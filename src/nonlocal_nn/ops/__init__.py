"""Eq. 1 of the paper on plain tensors (batch, positions, channels)."""
