# Tables and figures.


rule publish_table2:
    """Table 2 in three formats, and the single random draws behind it."""
    input:
        scores=collect("<results>/scores/{dataset}.per_prompt.parquet", dataset=DATASETS),
        published=workflow.source_path("../data/published.csv"),
    output:
        csv="<results>/tables/table2.csv",
        md="<results>/tables/table2.md",
        tex="<results>/tables/table2.tex",
        draws="<results>/tables/table2.draws.csv",
    log:
        "<logs>/publish_table2.log",
    benchmark:
        "<benchmarks>/publish_table2.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        datasets=DATASETS,
        model=config["text"]["model"],
        heads=config["heads"],
        score=config["score"],
        spread=config["publish"]["spread"],
        published_heads=config["publish"]["published_heads"],
        seed=config["seed"],
        code=code_hash("publish_table2"),
    script:
        "../scripts/publish_table2.py"


rule plot_table2:
    """Table 2 as bars, with intervals, single draws and the published values."""
    input:
        table="<results>/tables/table2.csv",
        draws="<results>/tables/table2.draws.csv",
    output:
        "<results>/figures/table2.pdf",
        report(
            "<results>/figures/table2.png",
            caption="../report/table2.rst",
            category="2 Table 2",
            labels={"result": "figure"},
        ),
    log:
        "<logs>/plot_table2.log",
    benchmark:
        "<benchmarks>/plot_table2.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        colours=config["publish"]["colours"],
        code=code_hash("plot_table2"),
    script:
        "../scripts/plot_table2.py"


rule table2:
    """All of table 2."""
    input:
        rules.preflight.output,
        rules.publish_table2.output,
        rules.plot_table2.output,
