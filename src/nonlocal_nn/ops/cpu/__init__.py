"""What is particular to CPUs: matrix products, row chunks, buffers."""
