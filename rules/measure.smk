# What changes when heads are scaled: responses, likelihood, and what is measured in them.


rule intervene:
    """The responses to a part of the samples under every condition: its heads scaled."""
    input:
        samples=made("<results>/samples/{samples}.parquet"),
        heads=made("<results>/heads/{selected}/selected.csv", "<results>/heads/{random}/random.csv"),
        model=files_of_model,
    output:
        # Conditions that a file holds already are not computed again.
        update("<results>/responses/{experiment}/scaled/part-{part}.parquet"),
    log:
        "<logs>/intervene/{experiment}/part-{part}.log",
    benchmark:
        "<benchmarks>/intervene/{experiment}/part-{part}.tsv"
    priority: LONGEST
    conda:
        "../envs/model.yaml"
    threads: COMPUTE["threads"]
    resources:
        mem_mb=model_mb,
        runtime=by_attempt(1440),
        gpu=GPU,
    params:
        samples=samples_of,
        model=model_of,
        generation=own("generation"),
        conditions=lambda wildcards: conditions(config, wildcards.experiment, "count"),
        alpha=own("alpha"),
        device=COMPUTE["device"],
        batch_tokens=COMPUTE["batch_tokens"]["responding"],
        batch_images=COMPUTE["batch_images"],
        products=COMPUTE["products"],
        parts=COMPUTE["parts"],
        seed=config["seed"],
        code=code_hash("respond"),
    script:
        "../scripts/respond.py"


rule measure_expected:
    """The words' probability at the baseline's own positions under every condition."""
    input:
        samples=made("<results>/samples/{samples}.parquet"),
        responses=made("<results>/responses/{baseline}/baseline/part-{part}.parquet"),
        words=made("<results>/words/{words}.csv"),
        dictionary=made("<results>/dictionaries/{dictionary}.csv"),
        heads=made("<results>/heads/{selected}/selected.csv", "<results>/heads/{random}/random.csv"),
        model=files_of_model,
    output:
        update("<results>/expected/{experiment}/part-{part}.parquet"),
    log:
        "<logs>/measure_expected/{experiment}/part-{part}.log",
    benchmark:
        "<benchmarks>/measure_expected/{experiment}/part-{part}.tsv"
    priority: LONGEST
    conda:
        "../envs/model.yaml"
    threads: COMPUTE["threads"]
    resources:
        mem_mb=model_mb,
        runtime=by_attempt(720),
        gpu=GPU,
    params:
        model=model_of,
        conditions=lambda wildcards: conditions(config, wildcards.experiment, "expected"),
        alpha=own("alpha"),
        device=COMPUTE["device"],
        batch_tokens=COMPUTE["batch_tokens"]["reading"],
        products=COMPUTE["products"],
        parts=COMPUTE["parts"],
        code=code_hash("measure_expected"),
    script:
        "../scripts/measure_expected.py"


rule measure:
    """Every measure before and after, by sample and by word."""
    input:
        unpack(measured_in),
        samples=made("<results>/samples/{samples}.parquet"),
        words=made("<results>/words/{words}.csv"),
        baseline=made("<results>/responses/{baseline}/baseline/part-{part}.parquet"),
    output:
        by_sample="<results>/scores/{experiment}.parquet",
        by_word="<results>/scores/{experiment}.words.parquet",
    log:
        "<logs>/measure/{experiment}.log",
    benchmark:
        "<benchmarks>/measure/{experiment}.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(60),
    params:
        measures=own("measures"),
        normalise=own("normalise"),
        matching=lambda wildcards: {
            key: concept_words(wildcards)[key] for key in ("case_sensitive", "inflections")
        },
        code=code_hash("measure"),
    script:
        "../scripts/measure.py"
