# What a sceptic needs: each file's lineage, and the run in one archive.


rule audit:
    """Every file of the run with its hash, and how it was made."""
    input:
        rules.all.input,
    output:
        "<results>/audit/manifest.json",
    log:
        "<logs>/audit.log",
    benchmark:
        "<benchmarks>/audit.tsv"
    localrule: True
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        snakemake=SNAKEMAKE,
        code=code_hash("audit"),
    message:
        doing("audit", "Hash every file and write the manifest")
    script:
        "../scripts/audit.py"


rule crate:
    """The run as an RO-Crate, with the jobs that made each file."""
    input:
        rules.audit.output,
        pages=rules.write_pages.output,
    output:
        "<results>/audit/crate.zip",
    log:
        "<logs>/crate.log",
    benchmark:
        "<benchmarks>/crate.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        **by_attempt(mem_mb=2000, runtime=30),
    params:
        largest_mb=config["publish"]["crate_mb"],
        code=code_hash("crate"),
    message:
        doing("crate", "Pack the run as an RO-Crate")
    script:
        "../scripts/crate.py"
