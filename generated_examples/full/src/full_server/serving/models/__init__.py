"""Models: which there are, when they are loaded, how much work they take."""
