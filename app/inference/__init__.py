"""From an image to mask and confidence: model card, preprocessing, backbone, postprocessing."""
