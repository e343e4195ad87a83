"""Weight files to state dicts and back; no model code."""
