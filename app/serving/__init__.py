"""Segment images with calibrated confidence; cache results and monitor drift."""
