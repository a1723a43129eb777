"""Files, manifests and versioned calibrators."""
