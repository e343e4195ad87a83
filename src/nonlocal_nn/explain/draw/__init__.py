"""Figures and films of a capture, by matplotlib; nothing here opens a window."""
