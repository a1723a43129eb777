"""From a decoded image to its mask and confidence, with what the service keeps about it."""
