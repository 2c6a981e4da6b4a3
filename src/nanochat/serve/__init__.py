"""Talking to finished models: where they are, how a conversation is kept, and the terminal."""
