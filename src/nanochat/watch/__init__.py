"""The curves of runs in the terminal, while they train and afterwards, from metrics.jsonl: no torch."""
