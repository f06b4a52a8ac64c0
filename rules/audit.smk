# What a sceptic needs: each file's lineage, the run in one archive, and what it takes.

from headpursuit.run.estimate import measured


rule write_manifest:
    """Every file of the run with its hash, and how it was made."""
    input:
        rules.all.input,
    output:
        "<results>/audit/manifest.json",
    log:
        "<logs>/write_manifest.log",
    benchmark:
        "<benchmarks>/write_manifest.tsv"
    localrule: True
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        snakemake=SNAKEMAKE,
        code=code_hash("write_manifest"),
    script:
        "../scripts/write_manifest.py"


rule audit:
    """The manifest of a finished run."""
    input:
        rules.write_manifest.output,


rule write_crate:
    """The run as an RO-Crate, with the jobs that made each file."""
    input:
        rules.write_manifest.output,
        pages=rules.write_pages.output,
    output:
        "<results>/audit/crate.zip",
    log:
        "<logs>/write_crate.log",
    benchmark:
        "<benchmarks>/write_crate.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        **by_attempt(mem_mb=2000, runtime=30),
    params:
        largest_mb=config["publish"]["crate_mb"],
        code=code_hash("write_crate"),
    script:
        "../scripts/write_crate.py"


rule crate:
    """The research object of a finished run."""
    input:
        rules.write_crate.output,


rule estimate:
    """Tokens, device hours, disk and memory from the config, and what the run has measured."""
    output:
        json="<results>/estimate.json",
        md="<results>/estimate.md",
    log:
        "<logs>/estimate.log",
    localrule: True
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        config=config,
        benchmarks=lambda wildcards: measured(workflow.pathvars.apply("<benchmarks>")),
    script:
        "../scripts/estimate.py"
