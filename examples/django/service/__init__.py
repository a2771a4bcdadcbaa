"""A service that recognises handwritten digits."""
