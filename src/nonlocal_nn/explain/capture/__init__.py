"""One forward pass, after which any row of f/C can be had, and where its positions lie in the input."""
