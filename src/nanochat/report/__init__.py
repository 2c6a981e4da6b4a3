"""The report, built from JSON files without torch."""
