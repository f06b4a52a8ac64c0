# The metrics.

EXPECTED = collect(
    "<results>/expected/{{dataset}}/part-{part}.parquet",
    part=range(1, config["score"]["parts"] + 1),
)


rule measure_expected:
    """The words' probability at the baseline's own positions under every condition."""
    input:
        prompts="<results>/prompts/{dataset}.parquet",
        responses="<results>/generations/{dataset}/baseline.parquet",
        words="<results>/words/{dataset}.csv",
        dictionary="<results>/dictionaries/{dataset}.csv",
        heads=collect(
            "<results>/heads/{{dataset}}/{condition}.csv",
            condition=intervened_conditions(config["heads"]),
        ),
        model=MODEL_FILES,
    output:
        "<results>/expected/{dataset}/part-{part}.parquet",
    log:
        "<logs>/measure_expected/{dataset}/part-{part}.log",
    benchmark:
        "<benchmarks>/measure_expected/{dataset}/part-{part}.tsv"
    priority: LONGEST
    conda:
        "../envs/model.yaml"
    threads: config["compute"]["threads"]
    resources:
        mem_mb=by_attempt(MODEL_MB),
        runtime=by_attempt(720),
        gpu=GPU,
    params:
        model=MODEL,
        device=config["compute"]["device"],
        conditions=intervened_conditions(config["heads"]),
        alpha=config["heads"]["alpha"],
        batch_tokens=config["score"]["batch_tokens"],
        parts=config["score"]["parts"],
        products=config["score"]["products"],
        code=code_hash("measure_expected"),
    script:
        "../scripts/measure_expected.py"


rule score_words:
    """Both metrics, by word and by prompt."""
    input:
        words="<results>/words/{dataset}.csv",
        baseline="<results>/generations/{dataset}/baseline.parquet",
        intervened=collect(
            "<results>/generations/{{dataset}}/{condition}.parquet",
            condition=generated_conditions(config["heads"]),
        ),
        expected=EXPECTED,
    output:
        by_word="<results>/scores/{dataset}.parquet",
        by_prompt="<results>/scores/{dataset}.per_prompt.parquet",
    log:
        "<logs>/score_words/{dataset}.log",
    benchmark:
        "<benchmarks>/score_words/{dataset}.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(60),
    params:
        conditions=generated_conditions(config["heads"]),
        matching=MATCHING,
        code=code_hash("score_words"),
    script:
        "../scripts/score_words.py"
