"""Modules that drop into any network."""
