"""Join the parts of a condition's responses."""

import pyarrow as pa
import pyarrow.compute as pc
from headpursuit.files import parquet_metadata, read_parquet, write_parquet
from headpursuit.rule import run_rule


def main(snakemake):
    """Write the condition's responses, in the order of the prompts, then samples."""
    condition, paths = snakemake.wildcards.condition, snakemake.input.parts
    parts = pa.concat_tables(read_parquet(path, None) for path in paths)
    table = parts.filter(pc.equal(parts["condition"], condition)).drop_columns("condition")
    prompts = read_parquet(snakemake.input.prompts, ["prompt_id"])["prompt_id"]
    place = pc.index_in(table["prompt_id"], prompts)
    by = [("place", "ascending"), ("sample", "ascending")]
    table = table.append_column("place", place).sort_by(by).drop_columns("place")
    made_with = parquet_metadata(paths[0])[condition]
    write_parquet(snakemake.output[0], table.replace_schema_metadata(), made_with)


if __name__ == "__main__":
    run_rule(main, snakemake)
