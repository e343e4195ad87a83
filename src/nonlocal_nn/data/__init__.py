"""Files to clips; no model code."""
