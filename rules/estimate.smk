# What a run takes, before it starts and after.

from headpursuit.estimate import measured


rule estimate:
    """Jobs, tokens, disk, memory and device hours from the config, and what the run has measured."""
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
        python=sys.executable,
        benchmarks=lambda wildcards: measured(workflow.pathvars.apply("<benchmarks>")),
    script:
        "../scripts/estimate.py"
