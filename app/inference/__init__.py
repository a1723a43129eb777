"""Model cards, backbones, preprocessing and emission: from a picture to mask and confidence."""
