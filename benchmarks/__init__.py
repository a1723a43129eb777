"""Speed, memory and calibration quality, as ratios measured in one run."""
