"""Study of calibration methods: backbones x methods, in-domain and under shift."""
