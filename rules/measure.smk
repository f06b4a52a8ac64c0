# What changes when heads are scaled: responses, likelihood, and what is measured in them.


use rule respond as intervene with:
    """The responses to a part of the samples under every condition: its heads scaled.

    Conditions that the file holds already, or another experiment's, are not computed again.
    """
    input:
        samples=made("<results>/samples/{samples}.parquet"),
        heads=made("<results>/heads/{selected}/selected.csv", "<results>/heads/{random}/random.csv"),
        ranking=made("<results>/rankings/{rankings}.csv", when=lambda stated: stated["signed"]),
        model=files_of_model,
    output:
        update("<results>/responses/{experiment}/scaled/part-{part}.parquet"),
    log:
        "<logs>/intervene/{experiment}/part-{part}.log",
    benchmark:
        "<benchmarks>/intervene/{experiment}/part-{part}.tsv"
    priority: LONGEST
    resources:
        **by_attempt(mem_mb=model_mb, runtime=1440),
        gpu=GPU,
    params:
        conditions=lambda wildcards: conditions(config, wildcards.experiment, "occurrences"),
    message:
        doing("intervene", "Scale heads and respond: {wildcards.experiment}, part {wildcards.part}")


rule measure_expected:
    """The words' probability at the baseline's own positions under every condition.

    Conditions that the file holds already, or another experiment's, are not computed again.
    """
    input:
        samples=made("<results>/samples/{samples}.parquet"),
        responses=made("<results>/responses/{baseline}/baseline/part-{part}.parquet"),
        words=made("<results>/words/{words}.csv"),
        dictionary=made("<results>/dictionaries/{dictionary}.csv"),
        heads=made("<results>/heads/{selected}/selected.csv", "<results>/heads/{random}/random.csv"),
        ranking=made("<results>/rankings/{rankings}.csv", when=lambda stated: stated["signed"]),
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
        **by_attempt(mem_mb=model_mb, runtime=720),
        gpu=GPU,
    params:
        **own("model"),
        **pick(COMPUTE, "device", "products", "parts"),
        batch_tokens=COMPUTE["batch_tokens"]["reading"],
        conditions=lambda wildcards: conditions(config, wildcards.experiment, "expected"),
        code=code_hash("measure_expected"),
    message:
        doing(
            "measure_expected",
            "Scale heads and measure probabilities: {wildcards.experiment}, part {wildcards.part}",
        )
    script:
        "../scripts/measure_expected.py"


# Whether a classifier of texts reads an experiment's responses.
judged = at("{experiment}/classifier", STATED)


rule measure:
    """Every measure before and after, by sample and by word."""
    input:
        samples=made("<results>/samples/{samples}.parquet"),
        words=made("<results>/words/{words}.csv"),
        baseline=made("<results>/responses/{baseline}/baseline/part-{part}.parquet"),
        scaled=made(
            "<results>/responses/{scaled}/scaled/part-{part}.parquet", when=writes_responses
        ),
        expected=made(
            "<results>/expected/{expected}/part-{part}.parquet",
            when=lambda stated: "expected" in stated["measures"],
        ),
        answered=made(
            "<results>/answered/{scores}.json", when=lambda stated: "f1" in stated["measures"]
        ),
        classifier=source_of("classifier"),
    output:
        by_sample="<results>/scores/{experiment}.parquet",
        by_word="<results>/scores/{experiment}.words.parquet",
    log:
        "<logs>/measure/{experiment}.log",
    benchmark:
        "<benchmarks>/measure/{experiment}.tsv"
    priority: SHOWN
    conda:
        "../envs/model.yaml"
    threads: lambda wildcards: COMPUTE["threads"] if judged(wildcards) else 1
    resources:
        **by_attempt(
            mem_mb=lambda wildcards: 8000 if judged(wildcards) else 4000,
            runtime=lambda wildcards: 720 if judged(wildcards) else 60,
        ),
        gpu=lambda wildcards: GPU if judged(wildcards) else 0,
    params:
        **own("measures", "normalise", "classifier"),
        matching=lambda wildcards: pick(
            STATED[wildcards.experiment]["concept"], "case_sensitive", "inflections"
        ),
        code=code_hash("measure"),
    message:
        doing("measure", "Measure before and after: {wildcards.experiment}")
    script:
        "../scripts/measure.py"
