"""What every run is doing and what the past cost, from the files that stages write: no experiment file, no torch."""
