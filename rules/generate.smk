# Responses, with and without an intervention.


rule generate_baseline:
    """The model's responses as it is."""
    input:
        prompts="<results>/prompts/{dataset}.parquet",
        model=MODEL_FILES,
    output:
        "<results>/generations/{dataset}/baseline.parquet",
    log:
        "<logs>/generate_baseline/{dataset}.log",
    benchmark:
        "<benchmarks>/generate_baseline/{dataset}.tsv"
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
        generation=config["generation"],
        seed=config["seed"],
        code=code_hash("generate_baseline"),
    script:
        "../scripts/generate_baseline.py"


rule generate_intervened:
    """The responses to the same prompts with a condition's heads scaled by alpha."""
    input:
        prompts="<results>/prompts/{dataset}.parquet",
        heads="<results>/heads/{dataset}/{condition}.csv",
        model=MODEL_FILES,
    output:
        "<results>/generations/{dataset}/{condition}.parquet",
    log:
        "<logs>/generate_intervened/{dataset}/{condition}.log",
    benchmark:
        "<benchmarks>/generate_intervened/{dataset}/{condition}.tsv"
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
        generation=config["generation"],
        alpha=config["heads"]["alpha"],
        seed=config["seed"],
        code=code_hash("generate_intervened"),
    script:
        "../scripts/generate_intervened.py"
