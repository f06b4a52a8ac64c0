# Table 1: what single heads write, and the heads of concepts.

TABLE1 = config["table1"]
TABLE1_DATASETS = TABLE1["datasets"]
CONCEPTS = [concept for concept, words in TABLE1["concepts"].items() if words]


rule decompose_heads:
    """Every head's atoms out of the whole vocabulary, by SOMP."""
    input:
        activations=rules.cache_activations.output,
        model=MODEL_FILES,
        weights=WEIGHTS,
    output:
        "<results>/decompositions/{dataset}.parquet",
    log:
        "<logs>/decompose_heads/{dataset}.log",
    benchmark:
        "<benchmarks>/decompose_heads/{dataset}.tsv"
    priority: LONGEST
    conda:
        "../envs/model.yaml"
    threads: config["compute"]["threads"]
    resources:
        mem_mb=by_attempt(WEIGHTS_MB),
        runtime=by_attempt(240),
    params:
        model=MODEL,
        pursuit=config["pursuit"],
        iterations=TABLE1["iterations"],
        code=code_hash("decompose_heads"),
    script:
        "../scripts/decompose_heads.py"


rule read_lens:
    """Every head's tokens by the aggregated logit lens."""
    input:
        activations=rules.cache_activations.output,
        model=MODEL_FILES,
        weights=WEIGHTS,
    output:
        "<results>/lens/{dataset}.parquet",
    log:
        "<logs>/read_lens/{dataset}.log",
    benchmark:
        "<benchmarks>/read_lens/{dataset}.tsv"
    priority: LONGEST
    conda:
        "../envs/model.yaml"
    threads: config["compute"]["threads"]
    resources:
        mem_mb=by_attempt(WEIGHTS_MB),
        runtime=by_attempt(240),
    params:
        model=MODEL,
        fold_norm_gain=config["pursuit"]["fold_norm_gain"],
        per_sample=TABLE1["per_sample"],
        tokens=TABLE1["tokens"],
        code=code_hash("read_lens"),
    script:
        "../scripts/read_lens.py"


rule rank_specialists:
    """Rank heads by what few tokens explain, and how alike those are, against random tokens."""
    input:
        atoms="<results>/decompositions/{dataset}.parquet",
        activations=rules.cache_activations.output,
        model=MODEL_FILES,
        weights=WEIGHTS,
    output:
        ranking="<results>/specialists/{dataset}.csv",
        null="<results>/specialists/{dataset}.null.parquet",
    log:
        "<logs>/rank_specialists/{dataset}.log",
    benchmark:
        "<benchmarks>/rank_specialists/{dataset}.tsv"
    conda:
        "../envs/model.yaml"
    threads: config["compute"]["threads"]
    resources:
        mem_mb=by_attempt(WEIGHTS_MB),
        runtime=by_attempt(240),
    params:
        model=MODEL,
        center=config["pursuit"]["center"],
        fold_norm_gain=config["pursuit"]["fold_norm_gain"],
        tokens=TABLE1["tokens"],
        random_sets=TABLE1["random_sets"],
        seed=config["seed"],
        code=code_hash("rank_specialists"),
    script:
        "../scripts/rank_specialists.py"


rule publish_table1:
    """Table 1 in three formats."""
    input:
        atoms=collect("<results>/decompositions/{dataset}.parquet", dataset=TABLE1_DATASETS),
        lens=collect("<results>/lens/{dataset}.parquet", dataset=TABLE1_DATASETS),
        specialists=collect("<results>/specialists/{dataset}.csv", dataset=TABLE1_DATASETS),
        published=workflow.source_path("../data/published_tokens.csv"),
    output:
        csv="<results>/tables/table1.csv",
        md="<results>/tables/table1.md",
        tex="<results>/tables/table1.tex",
    log:
        "<logs>/publish_table1.log",
    benchmark:
        "<benchmarks>/publish_table1.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        datasets=TABLE1_DATASETS,
        model=config["text"]["model"],
        model_id=config["sources"][MODEL["source"]].get("id"),
        table1={key: value for key, value in TABLE1.items() if key != "concepts"},
        seed=config["seed"],
        code=code_hash("publish_table1"),
    script:
        "../scripts/publish_table1.py"


rule plot_heads:
    """What few tokens explain of each head, as a heat map."""
    input:
        specialists=collect("<results>/specialists/{dataset}.csv", dataset=TABLE1_DATASETS),
    output:
        "<results>/figures/heads.pdf",
        report(
            "<results>/figures/heads.png",
            caption="../report/heads.rst",
            category="3 Table 1",
            labels={"result": "figure: what the heads' atoms explain"},
        ),
    log:
        "<logs>/plot_heads.log",
    benchmark:
        "<benchmarks>/plot_heads.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        datasets=TABLE1_DATASETS,
        heads=TABLE1["heads"],
        top=TABLE1["top"],
        tokens=TABLE1["tokens"],
        code=code_hash("plot_heads"),
    script:
        "../scripts/plot_heads.py"


rule plot_atoms:
    """Explained variance against the number of atoms, of the heads shown and of random tokens."""
    input:
        atoms=collect("<results>/decompositions/{dataset}.parquet", dataset=TABLE1_DATASETS),
        specialists=collect("<results>/specialists/{dataset}.csv", dataset=TABLE1_DATASETS),
        nulls=collect("<results>/specialists/{dataset}.null.parquet", dataset=TABLE1_DATASETS),
    output:
        "<results>/figures/atoms.pdf",
        report(
            "<results>/figures/atoms.png",
            caption="../report/atoms.rst",
            category="3 Table 1",
            labels={"result": "figure: variance explained by atoms"},
        ),
    log:
        "<logs>/plot_atoms.log",
    benchmark:
        "<benchmarks>/plot_atoms.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        datasets=TABLE1_DATASETS,
        heads=TABLE1["heads"],
        top=TABLE1["top"],
        tokens=TABLE1["tokens"],
        colours=config["publish"]["colours"],
        code=code_hash("plot_atoms"),
    script:
        "../scripts/plot_atoms.py"


rule build_concept:
    """The rows of the unembedding matrix that a concept's words have."""
    input:
        words=concept_file,
        model=MODEL_FILES,
    output:
        "<results>/dictionaries/concepts/{concept}.csv",
    log:
        "<logs>/build_concept/{concept}.log",
    benchmark:
        "<benchmarks>/build_concept/{concept}.tsv"
    conda:
        "../envs/model.yaml"
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(10),
    params:
        model=MODEL,
        words=lookup("table1/concepts/{concept}", within=config),
        # Not of `input`: Snakemake keeps no record of params that take it, and would not rerun.
        content=lambda wildcards: concept_file(wildcards) and content(concept_file(wildcards)),
        rows=config["dictionary"]["rows"],
        leading_space=config["dictionary"]["leading_space"],
        code=code_hash("build_concept"),
    script:
        "../scripts/build_concept.py"


# The ranking of heads for toxicity, with a concept's dictionary in the place of the words'.
use rule rank_heads as rank_concept with:
    input:
        activations=rules.cache_activations.output,
        dictionary="<results>/dictionaries/concepts/{concept}.csv",
        unrelated=UNRELATED_WORDS,
        model=MODEL_FILES,
        weights=WEIGHTS,
    output:
        "<results>/rankings/{dataset}/{concept}.csv",
    log:
        "<logs>/rank_concept/{dataset}/{concept}.log",
    benchmark:
        "<benchmarks>/rank_concept/{dataset}/{concept}.tsv"
    priority: 0
    params:
        methods=["somp"],


rule publish_concepts:
    """How many of their top heads each two concepts share."""
    input:
        collect(
            "<results>/rankings/{dataset}/{concept}.csv",
            dataset=TABLE1_DATASETS,
            concept=CONCEPTS,
        ),
    output:
        csv="<results>/tables/concepts.csv",
        md="<results>/tables/concepts.md",
        tex="<results>/tables/concepts.tex",
    log:
        "<logs>/publish_concepts.log",
    benchmark:
        "<benchmarks>/publish_concepts.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        datasets=TABLE1_DATASETS,
        concepts=CONCEPTS,
        model=config["text"]["model"],
        k=config["heads"]["k"],
        layers=candidate_layers(config["heads"], MODEL),
        code=code_hash("publish_concepts"),
    script:
        "../scripts/publish_concepts.py"


rule plot_concept:
    """What a concept's words explain of each head, as a heat map."""
    input:
        collect(
            "<results>/rankings/{dataset}/{{concept}}.csv",
            dataset=TABLE1_DATASETS,
        ),
    output:
        "<results>/figures/concept-{concept}.pdf",
        report(
            "<results>/figures/concept-{concept}.png",
            caption="../report/concept.rst",
            category="4 Concepts",
            labels={"result": "figure: {concept}"},
        ),
    log:
        "<logs>/plot_concept/{concept}.log",
    benchmark:
        "<benchmarks>/plot_concept/{concept}.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        datasets=TABLE1_DATASETS,
        k=max(config["heads"]["k"]),
        layers=candidate_layers(config["heads"], MODEL),
        code=code_hash("plot_concept"),
    script:
        "../scripts/plot_concept.py"


rule table1:
    """All of table 1 and of the concepts, and all that lies in between."""
    input:
        rules.preflight.output,
        branch(
            TABLE1_DATASETS,
            then=[
                *rules.publish_table1.output,
                *rules.plot_heads.output,
                *rules.plot_atoms.output,
            ],
        ),
        branch(TABLE1_DATASETS and len(CONCEPTS) > 1, then=rules.publish_concepts.output),
        branch(TABLE1_DATASETS, then=collect(rules.plot_concept.output, concept=CONCEPTS)),
        branch(TABLE1_DATASETS, then=collect(rules.build_concept.output, concept=CONCEPTS)),
        collect("<results>/prompts/{dataset}.parquet", dataset=TABLE1_DATASETS),
        collect(rules.cache_activations.output, dataset=TABLE1_DATASETS),
        branch(TABLE1_DATASETS, then=WEIGHTS),
        collect(
            [
                *rules.decompose_heads.output,
                *rules.read_lens.output,
                *rules.rank_specialists.output,
            ],
            dataset=TABLE1_DATASETS,
        ),
        collect(
            rules.rank_concept.output,
            dataset=TABLE1_DATASETS,
            concept=CONCEPTS,
        ),
