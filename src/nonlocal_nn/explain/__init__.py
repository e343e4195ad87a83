"""What the non-local blocks of a network look at: rows of f/C, figures of them, and their statistics."""
