"""The config, files, checks before the start, and the lineage of every number."""
