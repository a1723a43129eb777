"""Calibration jobs: queue, files, and one worker process for each fit."""
