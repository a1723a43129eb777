"""Calibrators, the sets they are fitted on, metrics and reports; no web, no imaging."""
