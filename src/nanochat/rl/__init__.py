"""Reinforcement learning on problems with an answer that can be graded: problems, answers, objective, pass@k."""
