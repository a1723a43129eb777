"""Open folders of images, arrays and uploads as validation sets."""
