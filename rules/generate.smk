# Responses, with and without an intervention.

JOBS = generation_jobs(config["heads"], config["generation"]["conditions_per_job"])
JOB_OF = {condition: job for job, own in JOBS.items() for condition in own}
RESPONSES = collect(
    "<results>/responses/{{dataset}}/{job}/part-{part}.parquet",
    job=["baseline", *JOBS],
    part=range(1, config["generation"]["parts"] + 1),
)
# What decides the responses: not how they are divided among jobs.
GENERATION = {
    key: value
    for key, value in config["generation"].items()
    if key not in ("conditions_per_job", "parts")
}


rule generate_baseline:
    """The model's responses as it is, to a part of the prompts."""
    input:
        prompts="<results>/prompts/{dataset}.parquet",
        model=MODEL_FILES,
    output:
        "<results>/responses/{dataset}/baseline/part-{part}.parquet",
    log:
        "<logs>/generate_baseline/{dataset}/part-{part}.log",
    benchmark:
        "<benchmarks>/generate_baseline/{dataset}/part-{part}.tsv"
    priority: AWAITED
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
        generation=GENERATION,
        parts=config["generation"]["parts"],
        seed=config["seed"],
        code=code_hash("generate_baseline"),
    script:
        "../scripts/generate_baseline.py"


rule generate_intervened:
    """The responses to the same prompts under each of a job's conditions: its heads scaled."""
    input:
        prompts="<results>/prompts/{dataset}.parquet",
        heads=lambda wildcards: collect(
            "<results>/heads/{dataset}/{condition}.csv",
            dataset=wildcards.dataset,
            condition=JOBS[wildcards.job],
        ),
        model=MODEL_FILES,
    output:
        "<results>/responses/{dataset}/{job}/part-{part}.parquet",
    log:
        "<logs>/generate_intervened/{dataset}/{job}/part-{part}.log",
    benchmark:
        "<benchmarks>/generate_intervened/{dataset}/{job}/part-{part}.tsv"
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
        conditions=lookup("{job}", within=JOBS),
        generation=GENERATION,
        parts=config["generation"]["parts"],
        alpha=config["heads"]["alpha"],
        seed=config["seed"],
        code=code_hash("generate_intervened"),
    script:
        "../scripts/generate_intervened.py"


rule join_responses:
    """A condition's responses in one file, in the order of the prompts, however they were made."""
    input:
        prompts="<results>/prompts/{dataset}.parquet",
        parts=lambda wildcards: collect(
            "<results>/responses/{dataset}/{job}/part-{part}.parquet",
            dataset=wildcards.dataset,
            job=JOB_OF.get(wildcards.condition, "baseline"),
            part=range(1, config["generation"]["parts"] + 1),
        ),
    output:
        "<results>/generations/{dataset}/{condition}.parquet",
    log:
        "<logs>/join_responses/{dataset}/{condition}.log",
    benchmark:
        "<benchmarks>/join_responses/{dataset}/{condition}.tsv"
    priority: AWAITED
    localrule: True  # less work than it is to start a job on a cluster
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(10),
    params:
        code=code_hash("join_responses"),
    script:
        "../scripts/join_responses.py"
