"""Contextual scaling."""
