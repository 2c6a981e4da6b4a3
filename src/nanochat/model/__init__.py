"""The transformer and its attention variants."""
