# Rankings of heads.


rule rank_heads:
    """Rank all heads by what the selection words' tokens say of their writes."""
    input:
        activations=rules.cache_activations.output,
        dictionary="<results>/dictionaries/{dataset}.csv",
        unrelated=UNRELATED_WORDS,
        model=MODEL_FILES,
    output:
        "<results>/rankings/{dataset}/{method}.csv",
    log:
        "<logs>/rank_heads/{dataset}/{method}.log",
    benchmark:
        "<benchmarks>/rank_heads/{dataset}/{method}.tsv"
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
        pursuit=config["pursuit"],
        dictionary=config["dictionary"],
        seed=config["seed"],
        content=content(UNRELATED_WORDS),
        code=code_hash("rank_heads"),
    script:
        "../scripts/rank_heads.py"
