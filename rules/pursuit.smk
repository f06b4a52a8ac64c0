# Rankings of heads.


rule rank_heads:
    """Rank all heads by what the selection words' tokens say of their writes, by each method."""
    input:
        activations=rules.cache_activations.output,
        dictionary="<results>/dictionaries/{dataset}.csv",
        unrelated=UNRELATED_WORDS,
        model=MODEL_FILES,
        weights=WEIGHTS,
    output:
        "<results>/rankings/{dataset}.csv",
    log:
        "<logs>/rank_heads/{dataset}.log",
    benchmark:
        "<benchmarks>/rank_heads/{dataset}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    threads: config["compute"]["threads"]
    resources:
        mem_mb=by_attempt(WEIGHTS_MB),
        runtime=by_attempt(240),
    params:
        model=MODEL,
        methods=config["heads"]["methods"],
        split="selection",
        pursuit=config["pursuit"],
        dictionary=config["dictionary"],
        seed=config["seed"],
        content=content(UNRELATED_WORDS),
        code=code_hash("rank_heads"),
    script:
        "../scripts/rank_heads.py"
