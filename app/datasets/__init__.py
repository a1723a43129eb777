"""Anything labelled as a validation dataset."""
