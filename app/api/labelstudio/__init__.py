"""Label Studio's protocol of a machine learning backend: predictions, and annotations to fit on."""
