# The research object: a run, its code and how each file was made, packed into one RO-Crate.


rule write_crate:
    """The run as an RO-Crate, with the jobs that made each file."""
    input:
        rules.write_manifest.output,
        pages=PAGES,
    output:
        "<results>/audit/crate.zip",
    log:
        "<logs>/write_crate.log",
    benchmark:
        "<benchmarks>/write_crate.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        largest_mb=config["publish"]["crate_mb"],
        code=code_hash("write_crate"),
    script:
        "../scripts/write_crate.py"


rule crate:
    """The research object of a finished run."""
    input:
        rules.write_crate.output,
