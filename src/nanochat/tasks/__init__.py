"""The registry of tasks: name -> class."""

from nanochat.tasks.base import Task

TASKS: dict[str, type[Task]] = {}
