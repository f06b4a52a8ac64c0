"""The library behind the workflow's scripts: importable and testable without Snakemake."""
