"""Examples that run: each one is a small package or module with a test of its own."""
