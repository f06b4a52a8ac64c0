# Tables, figures, and the report's pages.

from headpursuit.publish.settings import differences, labeller_name, unlike_paper
from headpursuit.run.checks import PAGES

RATIOS = tables_of(config, "ratios")
HEADS = tables_of(config, "heads")
SHARED = {
    table: names
    for table, names in (RATIOS | tables_of(config, "overlaps")).items()
    if len({OWNERS[name]["rankings"] for name in names}) > 1
}
PUBLISHED = shipped_file("data/published.csv")
PUBLISHED_TOKENS = shipped_file("data/published_tokens.csv")


wildcard_constraints:
    ratios=any_of(RATIOS),
    heads_table=any_of(HEADS),
    shared=any_of(SHARED),


rule publish_ratios:
    """A table of ratios, how sets of heads compare, the single random draws, and the figure."""
    input:
        scores=in_table("<results>/scores/{scores}.parquet"),
        rankings=in_table("<results>/rankings/{rankings}.csv"),
        published=PUBLISHED,
    output:
        csv="<results>/tables/{ratios}.csv",
        md="<results>/tables/{ratios}.md",
        tex="<results>/tables/{ratios}.tex",
        draws="<results>/tables/{ratios}.draws.csv",
        tests="<results>/tables/{ratios}.tests.csv",
        tests_md="<results>/tables/{ratios}.tests.md",
        tests_tex="<results>/tables/{ratios}.tests.tex",
        figure=figure("<results>/figures/{ratios}", "figure"),
    log:
        "<logs>/publish_ratios/{ratios}.log",
    benchmark:
        "<benchmarks>/publish_ratios/{ratios}.tsv"
    priority: SHOWN
    conda:
        "../envs/tables.yaml"
    resources:
        **by_attempt(mem_mb=2000, runtime=30),
    params:
        experiments=lambda wildcards: {
            name: ratio_facts(config, name) | {"differs": differs}
            for name, differs in differences(config, RATIOS[wildcards.ratios]).items()
        },
        score=config["score"],
        models=lambda wildcards: hub_ids(config, models_of(config, RATIOS[wildcards.ratios])),
        publish=pick(config["publish"], "spread", "published_heads", "colours"),
        code=code_hash("publish_ratios"),
    message:
        doing("publish_ratios", "Publish the ratios of {wildcards.ratios}")
    script:
        "../scripts/publish_ratios.py"


rule publish_heads:
    """What single heads write in three formats, and two figures: all heads, and those shown."""
    input:
        atoms=in_table("<results>/decompositions/{decomposition}.parquet"),
        lens=in_table("<results>/lens/{lens}.parquet"),
        specialists=in_table("<results>/specialists/{decomposition}.csv"),
        nulls=in_table("<results>/specialists/{decomposition}.null.parquet"),
        published=PUBLISHED_TOKENS,
    output:
        csv="<results>/tables/{heads_table}.csv",
        md="<results>/tables/{heads_table}.md",
        tex="<results>/tables/{heads_table}.tex",
        heads=figure(
            "<results>/figures/{heads_table}.heads",
            "figure: what the heads' atoms explain",
        ),
        atoms=figure("<results>/figures/{heads_table}.atoms", "figure: variance explained by atoms"),
    log:
        "<logs>/publish_heads/{heads_table}.log",
    benchmark:
        "<benchmarks>/publish_heads/{heads_table}.tsv"
    priority: SHOWN
    conda:
        "../envs/tables.yaml"
    resources:
        **by_attempt(mem_mb=2000, runtime=30),
    params:
        experiments=lambda wildcards: {
            name: pick(EXPERIMENTS[name], "model", "samples", "vocabulary")
            for name in HEADS[wildcards.heads_table]
        },
        models=hub_ids(config, config["models"]),
        colours=config["publish"]["colours"],
        seed=config["seed"],
        code=code_hash("publish_heads"),
    message:
        doing("publish_heads", "Publish the heads of {wildcards.heads_table}")
    script:
        "../scripts/publish_heads.py"


rule publish_overlap:
    """How many of their top heads each two of a table's experiments share, and where they lie."""
    input:
        rankings=in_table("<results>/rankings/{rankings}.csv"),
        dictionaries=lambda wildcards: [
            path
            for name in SHARED[wildcards.shared]
            for path in named("<results>/dictionaries/{dictionary}.csv", heads_of(config, name))
        ],
    output:
        csv="<results>/tables/{shared}.overlap.csv",
        md="<results>/tables/{shared}.overlap.md",
        tex="<results>/tables/{shared}.overlap.tex",
        heads=figure(
            "<results>/figures/{shared}.heads",
            "figure: what the concepts' words explain",
        ),
    log:
        "<logs>/publish_overlap/{shared}.log",
    benchmark:
        "<benchmarks>/publish_overlap/{shared}.tsv"
    priority: SHOWN
    conda:
        "../envs/tables.yaml"
    resources:
        **by_attempt(mem_mb=1000, runtime=10),
    params:
        experiments=lambda wildcards: {
            name: pick(
                ratio_facts(config, name), "model", "heads_from", "ranked_by", "k", "layers"
            )
            for name in SHARED[wildcards.shared]
        },
        code=code_hash("publish_overlap"),
    message:
        doing("publish_overlap", "Publish shared heads: {wildcards.shared}")
    script:
        "../scripts/publish_overlap.py"


rule compare_published:
    """What the paper says beside what this run says: every published value, and every claim."""
    input:
        tables=collect("<results>/tables/{ratios}.csv", ratios=RATIOS),
        tests=collect("<results>/tables/{ratios}.tests.csv", ratios=RATIOS),
        overlaps=collect("<results>/tables/{shared}.overlap.csv", shared=SHARED),
        heads=collect("<results>/tables/{heads_table}.csv", heads_table=HEADS),
        published=PUBLISHED,
        tokens=PUBLISHED_TOKENS,
        claims=shipped_file("data/claims.yaml"),
    output:
        csv="<results>/tables/published.csv",
        md="<results>/tables/published.md",
        tex="<results>/tables/published.tex",
        claims="<results>/tables/claims.csv",
        claims_md="<results>/tables/claims.md",
        claims_tex="<results>/tables/claims.tex",
    log:
        "<logs>/compare_published.log",
    benchmark:
        "<benchmarks>/compare_published.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        **by_attempt(mem_mb=1000, runtime=10),
    params:
        run=config["run"],
        models=hub_ids(config, config["models"]),
        labeller=lambda wildcards: labeller_name(config),  # braces in it are no wildcards
        settings=lambda wildcards: unlike_paper(config),
        published_heads=config["publish"]["published_heads"],
        experiments=claim_facts(config),
        confidence=config["score"]["confidence"],
        code=code_hash("compare_published"),
    message:
        doing("compare_published", "Compare with the paper: its values and claims")
    script:
        "../scripts/compare_published.py"


TABLE_PAGES = {table: (f"2 {table}", "table") for table in [*RATIOS, *HEADS, *SHARED]}
TABLES = [
    *collect(rules.publish_ratios.output, ratios=RATIOS),
    *collect(rules.publish_heads.output, heads_table=HEADS),
    *collect(rules.publish_overlap.output, shared=SHARED),
    *rules.compare_published.output,
]


rule write_pages:
    """The report's pages: published values, tables, all heads, the choices, what the run took."""
    input:
        template=shipped_file("report/page.html.jinja"),
        script=shipped_file("report/atlas.js"),
        config="<results>/config.yaml",
        # The page on time and memory comes last.
        tables=TABLES,
        heads=[
            *every("<results>/rankings/{rankings}.csv"),
            *every("<results>/heads/{selected}/selected.csv"),
            *every("<results>/heads/{random}/random.csv"),
            *every("<results>/specialists/{decomposition}.csv"),
            *every("<results>/decompositions/{decomposition}.parquet"),
        ],
        provenance=[*map(source_record, used_sources(config))],
        words=every("<results>/words/{words}.csv"),
        labels=every("<results>/labels/{labels}.parquet"),
        summaries=every("<results>/labels/{labels}.summary.json"),
    output:
        [
            report(
                f"<results>/report/{page}.html",
                caption=f"../report/{page if page in PAGES else 'table'}.rst",
                category=category,
                labels={"result": result},
            )
            for page, (category, result) in (PAGES | TABLE_PAGES).items()
        ],
    log:
        "<logs>/write_pages.log",
    benchmark:
        "<benchmarks>/write_pages.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        **by_attempt(mem_mb=1000, runtime=10),
    params:
        code=code_hash("write_pages"),
    message:
        doing("write_pages", "Write the pages of the report")
    script:
        "../scripts/write_pages.py"
