"""nanochat: the whole life of a small chat model, from raw text to a conversation."""

__version__ = "0.1.0"
