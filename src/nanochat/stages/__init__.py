"""One module per stage: parse, load, start, build, run, save."""
