"""Metrics, multi-view testing and cost. A model is just a callable here."""
