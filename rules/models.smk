# Models as folders of safetensors.


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
