"""Background fits: queue, records on disk, and the process of each fit."""
