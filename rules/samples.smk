# What models read, what they respond as they are, and the activations of their heads.


rule prepare_samples:
    """Draw prompts and render what the model reads; or draw images, class by class."""
    input:
        data=source_of("samples"),
        excluded=source_of("excluded"),
        # Images are drawn without a model.
        model=branch(at("{experiment}/reader", STATED), then=files_of_model),
    output:
        "<results>/samples/{experiment}.parquet",
    log:
        "<logs>/prepare_samples/{experiment}.log",
    benchmark:
        "<benchmarks>/prepare_samples/{experiment}.tsv"
    priority: JUDGING
    conda:
        "../envs/model.yaml"
    resources:
        **by_attempt(mem_mb=4000, runtime=60),
    params:
        **own("name", "samples", "excluded", "max_new_tokens"),
        model=at("{experiment}/reader", STATED),
        seed=config["seed"],
        code=code_hash("prepare_samples"),
    message:
        doing("prepare_samples", "Draw the samples of {wildcards.experiment}")
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
        **by_attempt(mem_mb=model_mb, runtime=720),
        gpu=GPU,
    params:
        **own("samples", "model", "generation", "batch_images"),
        **pick(COMPUTE, "device", "memory_gb", "products", "parts"),
        batch_tokens=COMPUTE["batch_tokens"]["responding"],
        seed=config["seed"],
        code=code_hash("respond"),
    message:
        doing("respond", "Let the model respond: {wildcards.experiment}, part {wildcards.part}")
    script:
        "../scripts/respond.py"


rule cache_activations:
    """What each head's slice of the output projection reads, averaged over a sample's positions."""
    input:
        samples=made("<results>/samples/{samples}.parquet"),
        responses=made(
            "<results>/responses/{baseline}/baseline/part-{part}.parquet",
            when=lambda stated: stated["positions"] == "response",
        ),
        model=files_of_model,
    output:
        "<results>/activations/{experiment}.parquet",
    log:
        "<logs>/cache_activations/{experiment}.log",
    benchmark:
        "<benchmarks>/cache_activations/{experiment}.tsv"
    priority: SHOWN
    conda:
        "../envs/model.yaml"
    threads: COMPUTE["threads"]
    resources:
        **by_attempt(mem_mb=model_mb, runtime=240),
        gpu=GPU,
    params:
        **own("samples", "model", "positions", "special_tokens", "batch_images"),
        device=COMPUTE["device"],
        batch_tokens=COMPUTE["batch_tokens"]["reading"],
        dtype=COMPUTE["cache"],
        code=code_hash("cache_activations"),
    message:
        doing("cache_activations", "Cache activations: {wildcards.experiment}")
    script:
        "../scripts/cache_activations.py"
