"""Model cards, backbones, preprocessing and emission: from an image to mask and confidence."""
