"""Message types: instances of classes are written, and read."""
