# The concept's words: labelled, split, and turned into rows of the unembedding matrix.

LABELLER = config["labeller"]


rule label_responses:
    """Name the harmful words of each baseline response (and prompt), or the keywords of each image."""
    input:
        **to_label(LABELLER["backend"]),
    output:
        labels="<results>/labels/{experiment}.parquet",
        summary="<results>/labels/{experiment}.summary.json",
    log:
        "<logs>/label_responses/{experiment}.log",
    benchmark:
        "<benchmarks>/label_responses/{experiment}.tsv"
    priority: AWAITED
    conda:
        "../envs/label.yaml"
    resources:
        **label_resources(LABELLER["backend"]),
    params:
        **label_params(LABELLER["backend"]),
        code=code_hash("label_responses"),
    message:
        doing("label_responses", "Label words: {wildcards.experiment}")
    script:
        "../scripts/label_responses.py"


use rule label_responses as label_second with:
    """The same, labelled by labeller.second, and how far it agrees, by response (image) and word.

    It comes after the first labels, though the agreement alone needs them: two models asked at once
    would share a GPU. Where these are made again, its journal has every reply already.
    """
    input:
        **to_label(LABELLER["second"]),
        first="<results>/labels/{experiment}.parquet",
    output:
        labels="<results>/labels/second/{experiment}.parquet",
        summary="<results>/labels/second/{experiment}.summary.json",
        agreement="<results>/labels/{experiment}.agreement.csv",
    log:
        "<logs>/label_second/{experiment}.log",
    benchmark:
        "<benchmarks>/label_second/{experiment}.tsv"
    priority: 0
    resources:
        **label_resources(LABELLER["second"]),
    params:
        **label_params(LABELLER["second"]),
        code=code_hash("label_responses"),
    message:
        doing("label_second", "Label words by labeller.second: {wildcards.experiment}")


rule split_words:
    """The concept's words, the most frequent ones, split into selection and held-out words."""
    input:
        labels=made(
            "<results>/labels/{labels}.parquet",
            when=lambda stated: is_asked(stated["concept"]),
        ),
        responses=made(
            "<results>/responses/{baseline}/baseline/part-{part}.parquet",
            when=lambda stated: stated["concept"]["top"] and not is_asked(stated["concept"]),
        ),
        samples=made(
            "<results>/samples/{samples}.parquet",
            when=lambda stated: "class_names" in stated["concept"],
        ),
        file=own_file("{experiment}/words_file", STATED),
    output:
        "<results>/words/{experiment}.csv",
    log:
        "<logs>/split_words/{experiment}.log",
    benchmark:
        "<benchmarks>/split_words/{experiment}.tsv"
    priority: JUDGING
    localrule: True  # less work than it is to start a job on a cluster
    conda:
        "../envs/tables.yaml"
    resources:
        **by_attempt(mem_mb=1000, runtime=10),
    params:
        **own("concept", "key", "name", "split"),
        content=own_content("{experiment}/words_file", STATED),
        seed=config["seed"],
        code=code_hash("split_words"),
    message:
        doing("split_words", "Split the words of {wildcards.experiment}")
    script:
        "../scripts/split_words.py"


rule count_answered:
    """How many questions the concept's words answer, which f1 tells apart from the others."""
    input:
        words=made("<results>/words/{words}.csv"),
        samples=made("<results>/samples/{samples}.parquet"),
    output:
        "<results>/answered/{experiment}.json",
    log:
        "<logs>/count_answered/{experiment}.log",
    benchmark:
        "<benchmarks>/count_answered/{experiment}.tsv"
    priority: JUDGING
    localrule: True  # less work than it is to start a job on a cluster
    conda:
        "../envs/tables.yaml"
    resources:
        **by_attempt(mem_mb=1000, runtime=10),
    params:
        **own("key", "name"),
        code=code_hash("count_answered"),
    message:
        doing("count_answered", "Count the questions that words of {wildcards.experiment} answer")
    script:
        "../scripts/count_answered.py"


rule build_dictionary:
    """The rows of the unembedding matrix that each word has, and those that both splits share."""
    input:
        words=made("<results>/words/{words}.csv"),
        model=files_of_model,
    output:
        "<results>/dictionaries/{experiment}.csv",
    log:
        "<logs>/build_dictionary/{experiment}.log",
    benchmark:
        "<benchmarks>/build_dictionary/{experiment}.tsv"
    priority: SHOWN
    conda:
        "../envs/model.yaml"
    resources:
        **by_attempt(mem_mb=4000, runtime=10),
    params:
        **own("model", "concept", "key"),
        code=code_hash("build_dictionary"),
    message:
        doing("build_dictionary", "Find the tokens of the words of {wildcards.experiment}")
    script:
        "../scripts/build_dictionary.py"
