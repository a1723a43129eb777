"""Train and export the bundled backbone: network, data, training loop, ONNX file."""
