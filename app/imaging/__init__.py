"""Decode images within limits; encode masks, confidence, heatmaps and overlays."""
