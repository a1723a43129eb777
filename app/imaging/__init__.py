"""Bytes to arrays and back: decoding with limits, masks, heatmaps, overlays, run lengths."""
