"""The paper's tables as data, the grid of runs that fills them, and what their figures allow one to say."""
