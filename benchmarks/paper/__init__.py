"""Which calibrator to trust: backbones x methods, in-domain and shifted, in one table."""
