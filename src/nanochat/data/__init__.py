"""Sources, text shards, packing, and rows of tokens."""
