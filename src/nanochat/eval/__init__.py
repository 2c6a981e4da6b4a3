"""Bits per byte, categorical and generative evaluation."""
