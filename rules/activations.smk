# The activation cache.


rule cache_activations:
    """What each head's slice of the output projection reads, averaged over a sample's positions."""
    input:
        prompts="<results>/prompts/{dataset}.parquet",
        responses=branch(
            lambda wildcards: pooled_where(config, wildcards.dataset) == "response",
            then="<results>/generations/{dataset}/baseline.parquet",
        ),
        model=MODEL_FILES,
    output:
        collect(
            "<results>/activations/{{dataset}}/layer-{layer}.parquet",
            layer=[f"{layer:02d}" for layer in LAYERS],
        ),
    log:
        "<logs>/cache_activations/{dataset}.log",
    benchmark:
        "<benchmarks>/cache_activations/{dataset}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    threads: config["compute"]["threads"]
    resources:
        mem_mb=by_attempt(MODEL_MB),
        runtime=by_attempt(240),
        gpu=GPU,
    params:
        model=MODEL,
        device=config["compute"]["device"],
        activations=lambda wildcards: {
            **config["activations"],
            "positions": pooled_where(config, wildcards.dataset),
        },
        code=code_hash("cache_activations"),
    script:
        "../scripts/cache_activations.py"
