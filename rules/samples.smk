# What models read, what they respond as they are, and the activations of their heads.


rule prepare_samples:
    """Draw prompts and render what the model reads; or draw images, class by class."""
    input:
        data=lambda wildcards: source_record(samples_of(wildcards)["source"]),
        # Images are drawn without a model.
        model=lambda wildcards: (
            [] if of_images(samples_of(wildcards)) else files_of_model(wildcards)
        ),
    output:
        "<results>/samples/{experiment}.parquet",
    log:
        "<logs>/prepare_samples/{experiment}.log",
    benchmark:
        "<benchmarks>/prepare_samples/{experiment}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(60),
    params:
        name=samples_name,
        samples=samples_of,
        model=lambda wildcards: (None if of_images(samples_of(wildcards)) else model_of(wildcards)),
        max_new_tokens=lambda wildcards: (
            None
            if of_images(samples_of(wildcards))
            else EXPERIMENTS[wildcards.experiment]["generation"]["max_new_tokens"]
        ),
        seed=config["seed"],
        code=code_hash("prepare_samples"),
    script:
        "../scripts/prepare_samples.py"


rule respond:
    """The model's responses as it is, to a part of the samples."""
    input:
        samples=made("<results>/samples/{samples}.parquet"),
        model=files_of_model,
    output:
        "<results>/responses/{experiment}/baseline/part-{part}.parquet",
    log:
        "<logs>/respond/{experiment}/part-{part}.log",
    benchmark:
        "<benchmarks>/respond/{experiment}/part-{part}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    threads: COMPUTE["threads"]
    resources:
        mem_mb=model_mb,
        runtime=by_attempt(720),
        gpu=GPU,
    params:
        samples=samples_of,
        model=model_of,
        generation=own("generation"),
        device=COMPUTE["device"],
        batch_tokens=COMPUTE["batch_tokens"]["responding"],
        batch_images=COMPUTE["batch_images"],
        products=COMPUTE["products"],
        parts=COMPUTE["parts"],
        seed=config["seed"],
        code=code_hash("respond"),
    script:
        "../scripts/respond.py"


rule cache_activations:
    """What each head's slice of the output projection reads, averaged over a sample's positions."""
    input:
        samples=made("<results>/samples/{samples}.parquet"),
        responses=lambda wildcards: (
            named(
                "<results>/responses/{baseline}/baseline/part-{part}.parquet", wildcards.experiment
            )
            if positions_of(config, EXPERIMENTS[wildcards.experiment]) == "response"
            else []
        ),
        model=files_of_model,
    output:
        "<results>/activations/{experiment}.parquet",
    log:
        "<logs>/cache_activations/{experiment}.log",
    benchmark:
        "<benchmarks>/cache_activations/{experiment}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    threads: COMPUTE["threads"]
    resources:
        mem_mb=model_mb,
        runtime=by_attempt(240),
        gpu=GPU,
    params:
        samples=samples_of,
        model=model_of,
        positions=lambda wildcards: positions_of(config, EXPERIMENTS[wildcards.experiment]),
        special_tokens=own("special_tokens"),
        device=COMPUTE["device"],
        batch_tokens=COMPUTE["batch_tokens"]["reading"],
        batch_images=COMPUTE["batch_images"],
        dtype=COMPUTE["cache"],
        code=code_hash("cache_activations"),
    script:
        "../scripts/cache_activations.py"
