"""Files of weights to models and back: our own format, public layouts, the Hugging Face hub."""
