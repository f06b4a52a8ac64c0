# Models as folders of safetensors, and the weights that rankings need.


rule convert_gguf:
    """Dequantise a GGUF model once; everything after loads plain safetensors."""
    input:
        source=source_record("models/{model}/source"),
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
        mem_mb=by_attempt(MODEL_MB * 2),
        runtime=by_attempt(60),
    params:
        model=lookup("models/{model}", within=config),
        code=code_hash("convert_gguf"),
    script:
        "../scripts/convert_gguf.py"


rule extract_weights:
    """The weights that rankings, decompositions and lenses read, in one load of the model."""
    input:
        model=lambda wildcards: model_files(wildcards.model),
    output:
        "<results>/weights/{model}.safetensors",
    log:
        "<logs>/extract_weights/{model}.log",
    benchmark:
        "<benchmarks>/extract_weights/{model}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    threads: config["compute"]["threads"]
    resources:
        mem_mb=by_attempt(LARGEST_MB),
        runtime=by_attempt(60),
    params:
        model=lookup("models/{model}", within=config),
        code=code_hash("extract_weights"),
    script:
        "../scripts/extract_weights.py"
