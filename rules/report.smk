# The report's pages: snakemake --report shows them beside the figures (docs/report.md).

PAGE = workflow.source_path("../report/page.html.jinja")


rule write_pages:
    """Published values beside the run's, table 2, the choices in force, and what the run took."""
    input:
        template=PAGE,
        config="<results>/config.yaml",
        published="<results>/tables/published.md",
        table2="<results>/tables/table2.md",
        figures="<results>/figures/table2.png",
        provenance=collect("<resources>/{source}/provenance.json", source=used_sources(config)),
        # The page on time and memory comes last.
        finished=[rules.table2.input, rules.table1.input, FIGURE1],
    output:
        report(
            "<results>/report/published.html",
            caption="../report/published.rst",
            category="1 Published against reproduced",
            labels={"result": "overview"},
        ),
        report(
            "<results>/report/table2.html",
            caption="../report/table2.rst",
            category="2 Table 2",
            labels={"result": "table 2 beside the published values"},
        ),
        report(
            "<results>/report/choices.html",
            caption="../report/choices.rst",
            category="7 Choices",
            labels={"result": "choices in force"},
        ),
        report(
            "<results>/report/run.html",
            caption="../report/run.rst",
            category="8 Time, memory, software",
            labels={"result": "time, memory, software, sources"},
        ),
    log:
        "<logs>/write_pages.log",
    benchmark:
        "<benchmarks>/write_pages.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        code=code_hash("write_pages"),
    script:
        "../scripts/write_pages.py"


PAGES = [*rules.write_pages.output]

if TABLE1_DATASETS:

    use rule write_pages as write_table1_page with:
        input:
            template=PAGE,
            config="<results>/config.yaml",
            table1="<results>/tables/table1.md",
            words=collect("<results>/words/{dataset}.csv", dataset=DATASETS),
            labels=branch(
                not config["words"]["file"],
                then=collect("<results>/labels/{dataset}.parquet", dataset=DATASETS),
            ),
        output:
            report(
                "<results>/report/table1.html",
                caption="../report/table1.rst",
                category="3 Table 1",
                labels={"result": "table 1 beside the published tokens"},
            ),
        log:
            "<logs>/write_table1_page.log",
        benchmark:
            "<benchmarks>/write_table1_page.tsv"

    PAGES += rules.write_table1_page.output


if TABLE1_DATASETS and len(CONCEPTS) > 1:

    use rule write_pages as write_concepts_page with:
        input:
            template=PAGE,
            config="<results>/config.yaml",
            concepts="<results>/tables/concepts.md",
        output:
            report(
                "<results>/report/concepts.html",
                caption="../report/concepts.rst",
                category="4 Concepts",
                labels={"result": "heads that concepts share"},
            ),
        log:
            "<logs>/write_concepts_page.log",
        benchmark:
            "<benchmarks>/write_concepts_page.tsv"

    PAGES += rules.write_concepts_page.output


if config["vision"]:

    use rule write_pages as write_figure1_page with:
        input:
            template=PAGE,
            config="<results>/config.yaml",
            figure1="<results>/tables/figure1.md",
            figures=["<results>/figures/figure1.png", "<results>/figures/figure1.overlap.png"],
        output:
            report(
                "<results>/report/figure1.html",
                caption="../report/figure1.rst",
                category="5 Figure 1",
                labels={"result": "figure 1 beside the published values"},
            ),
        log:
            "<logs>/write_figure1_page.log",
        benchmark:
            "<benchmarks>/write_figure1_page.tsv"

    PAGES += rules.write_figure1_page.output
