"""Networks built from finished parts."""
