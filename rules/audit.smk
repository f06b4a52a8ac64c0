# What a sceptic needs.


localrules:
    write_manifest,


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
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        code=code_hash("write_manifest"),
    script:
        "../scripts/write_manifest.py"


rule audit:
    """The manifest of a finished run."""
    input:
        rules.write_manifest.output,
