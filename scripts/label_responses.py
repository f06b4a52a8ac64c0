"""Name the toxic words of each baseline response (and prompt, where the config says so)."""

from pathlib import Path

import pyarrow as pa
from headpursuit.files import read_parquet, write_parquet
from headpursuit.labellers import label_responses, open_backend
from headpursuit.prompts import as_responses, read_rows
from headpursuit.rule import run_rule
from headpursuit.sources import source_files


def main(snakemake):
    """Write prompt_id, sample (-1: the prompt), reply, words, dropped, status, attempts and cut.

    Replies are kept in a journal beside the output until it is there, so that a killed job asks
    nothing twice.
    """
    settings, output = snakemake.params.labeller, Path(snakemake.output[0])
    responses = read_parquet(snakemake.input.responses, ["prompt_id", "sample", "response"])
    if snakemake.input.prompts:
        prompts = read_parquet(str(snakemake.input.prompts), ["prompt_id", "text"])
        responses = pa.concat_tables([responses, as_responses(prompts)])
    terms = []
    if snakemake.input.lexicon:
        spec = settings["lexicon"]
        files = source_files(str(snakemake.input.lexicon), spec["files"])
        terms = [word for _, word in read_rows(files, spec["text"], spec["where"])]
    journal = output.with_name(f".{output.stem}.journal")
    texts = responses["response"].to_pylist()
    log = Path(snakemake.log[0]).with_suffix(".server.log")
    with open_backend(settings, texts, terms=terms, log=log) as backend:
        labels = label_responses(responses, backend, journal)
    write_parquet(output, labels)
    journal.unlink(missing_ok=True)


if __name__ == "__main__":
    run_rule(main, snakemake)
