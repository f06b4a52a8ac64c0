# Toxic words: labelled, split, and turned into rows of the unembedding matrix.


rule label_responses:
    """Name the toxic words of each baseline response (and prompt, where the config says so)."""
    input:
        responses="<results>/generations/{dataset}/baseline.parquet",
        prompts=branch(
            "prompt" in config["words"]["texts"], then="<results>/prompts/{dataset}.parquet"
        ),
        lexicon=branch(
            config["labeller"]["backend"] == "lexicon",
            then=f"<resources>/{config['labeller']['lexicon']['source']}/provenance.json",
        ),
    output:
        "<results>/labels/{dataset}.parquet",
    log:
        "<logs>/label_responses/{dataset}.log",
    benchmark:
        "<benchmarks>/label_responses/{dataset}.tsv"
    conda:
        "../envs/label.yaml"
    resources:
        mem_mb=2000,
        runtime=2880,
    params:
        labeller=config["labeller"],
        code=code_hash("label_responses"),
    script:
        "../scripts/label_responses.py"


rule split_words:
    """The most frequent labelled words (or the user's own), split into selection and held-out."""
    input:
        labels=branch(not config["words"]["file"], then="<results>/labels/{dataset}.parquet"),
        words=branch(config["words"]["file"], then=config["words"]["file"]),
        responses=branch(
            config["words"]["file"], then="<results>/generations/{dataset}/baseline.parquet"
        ),
    output:
        "<results>/words/{dataset}.csv",
    log:
        "<logs>/split_words/{dataset}.log",
    benchmark:
        "<benchmarks>/split_words/{dataset}.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        words=config["words"],
        matching=MATCHING,
        seed=config["seed"],
        code=code_hash("split_words"),
    script:
        "../scripts/split_words.py"


rule build_dictionary:
    """The rows of the unembedding matrix that each word has, and those that both splits share."""
    input:
        words="<results>/words/{dataset}.csv",
        model=MODEL_FILES,
    output:
        "<results>/dictionaries/{dataset}.csv",
    log:
        "<logs>/build_dictionary/{dataset}.log",
    benchmark:
        "<benchmarks>/build_dictionary/{dataset}.tsv"
    conda:
        "../envs/model.yaml"
    resources:
        mem_mb=4000,
        runtime=10,
    params:
        model=MODEL,
        dictionary=config["dictionary"],
        code=code_hash("build_dictionary"),
    script:
        "../scripts/build_dictionary.py"
