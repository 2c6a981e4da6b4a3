"""The plan before the money: how long a stage takes, what it costs, what it needs. Free of torch."""
