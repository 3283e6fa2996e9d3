"""What the tuner prints."""
