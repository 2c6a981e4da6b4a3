"""Everything that a later stage can die of, checked on the login node before the first GPU second is spent. Free of torch."""
