"""Training with Lightning; nothing here is imported before it is used."""
