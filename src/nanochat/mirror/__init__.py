"""Copies of metrics.jsonl for TensorBoard, Weights & Biases and Trackio, each made by a process of its own that reads the file.

A training knows nothing of these libraries: whatever they do, refuse or raise, in another process, changes no weight and ends no training.
"""
