# What a sceptic needs: the published values beside this run's, and what each file is.

from headpursuit.settings import labeller_name, unlike_paper


rule compare_published:
    """Every published value beside this run's, with what else differs."""
    input:
        table2="<results>/tables/table2.csv",
        figure1=branch(config["vision"], then="<results>/tables/figure1.csv"),
        published=workflow.source_path("../data/published.csv"),
    output:
        csv="<results>/tables/published.csv",
        md="<results>/tables/published.md",
        tex="<results>/tables/published.tex",
    log:
        "<logs>/compare_published.log",
    benchmark:
        "<benchmarks>/compare_published.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        run=config["run"],
        models={
            "table2": hub_id(config["text"]["model"]) or config["text"]["model"],
            "figure1": VISION_MODEL and (hub_id(VISION_MODEL) or VISION_MODEL),
        },
        labeller=lambda wildcards: labeller_name(config),  # braces in it are no wildcards
        settings=unlike_paper(config),
        published_heads=config["publish"]["published_heads"],
        code=code_hash("compare_published"),
    script:
        "../scripts/compare_published.py"


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
