"""What answers on test images are worth, computed from plain arrays."""
