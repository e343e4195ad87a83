"""The pairwise functions for positions that are split over processes."""
