# Heads: ranked for the concept, chosen, matched by random ones, and decomposed.


rule rank_heads:
    """Rank all heads by what the selection words' tokens say of their writes, by every method."""
    input:
        activations=made("<results>/activations/{activations}.parquet"),
        dictionary=made("<results>/dictionaries/{dictionary}.csv"),
        unrelated=own_file("{experiment}/pursuit/unrelated_words", STATED),
        weights=weights_of_model,
        model=files_of_model,
    output:
        "<results>/rankings/{experiment}.csv",
    log:
        "<logs>/rank_heads/{experiment}.log",
    benchmark:
        "<benchmarks>/rank_heads/{experiment}.tsv"
    priority: SHOWN
    conda:
        "../envs/model.yaml"
    threads: COMPUTE["threads"]
    resources:
        **by_attempt(mem_mb=8000, runtime=240),
    params:
        **own("model", "pursuit", "concept", "name"),
        content=own_content("{experiment}/pursuit/unrelated_words", STATED),
        seed=config["seed"],
        code=code_hash("rank_heads"),
    message:
        doing("rank_heads", "Rank heads: {wildcards.experiment}")
    script:
        "../scripts/rank_heads.py"


rule select_heads:
    """The top k heads of each ranking among the candidate layers."""
    input:
        ranking=made("<results>/rankings/{rankings}.csv"),
    output:
        "<results>/heads/{experiment}/selected.csv",
    log:
        "<logs>/select_heads/{experiment}.log",
    benchmark:
        "<benchmarks>/select_heads/{experiment}.tsv"
    priority: AWAITED
    localrule: True  # less work than it is to start a job on a cluster
    conda:
        "../envs/tables.yaml"
    resources:
        **by_attempt(mem_mb=1000, runtime=10),
    params:
        **own("methods", "k", "layers"),
        code=code_hash("select_heads"),
    message:
        doing("select_heads", "Select heads: {wildcards.experiment}")
    script:
        "../scripts/select_heads.py"


rule draw_controls:
    """Random heads, as many in each layer as the first method selects there, and none of those."""
    input:
        selected=made("<results>/heads/{selected}/selected.csv"),
    output:
        "<results>/heads/{experiment}/random.csv",
    log:
        "<logs>/draw_controls/{experiment}.log",
    benchmark:
        "<benchmarks>/draw_controls/{experiment}.tsv"
    priority: AWAITED
    localrule: True  # less work than it is to start a job on a cluster
    conda:
        "../envs/tables.yaml"
    resources:
        **by_attempt(mem_mb=1000, runtime=10),
    params:
        **own("method", "k", "draws", "n_heads", "layers", "name"),
        seed=config["seed"],
        code=code_hash("draw_controls"),
    message:
        doing("draw_controls", "Draw random heads: {wildcards.experiment}")
    script:
        "../scripts/draw_controls.py"


rule decompose_heads:
    """Every head's atoms out of the whole vocabulary, by SOMP, against random sets of tokens."""
    input:
        activations=made("<results>/activations/{activations}.parquet"),
        weights=weights_of_model,
        model=files_of_model,
    output:
        atoms="<results>/decompositions/{experiment}.parquet",
        specialists="<results>/specialists/{experiment}.csv",
        null="<results>/specialists/{experiment}.null.parquet",
    log:
        "<logs>/decompose_heads/{experiment}.log",
    benchmark:
        "<benchmarks>/decompose_heads/{experiment}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    threads: COMPUTE["threads"]
    resources:
        **by_attempt(mem_mb=16000, runtime=720),
    params:
        **own("model", "pursuit", "name"),
        vocabulary=lambda wildcards: pick(
            EXPERIMENTS[wildcards.experiment]["vocabulary"], "tokens", "draws", "neighbours"
        ),
        seed=config["seed"],
        code=code_hash("decompose_heads"),
    message:
        doing("decompose_heads", "Decompose all heads: {wildcards.experiment}")
    script:
        "../scripts/decompose_heads.py"


rule read_lens:
    """Every head's tokens by the aggregated logit lens."""
    input:
        activations=made("<results>/activations/{activations}.parquet"),
        weights=weights_of_model,
        model=files_of_model,
    output:
        "<results>/lens/{experiment}.parquet",
    log:
        "<logs>/read_lens/{experiment}.log",
    benchmark:
        "<benchmarks>/read_lens/{experiment}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    threads: COMPUTE["threads"]
    resources:
        **by_attempt(mem_mb=8000, runtime=240),
    params:
        **own("model"),
        fold_norm_gain=at("{experiment}/pursuit/fold_norm_gain", EXPERIMENTS),
        vocabulary=lambda wildcards: pick(
            EXPERIMENTS[wildcards.experiment]["vocabulary"], "tokens", "per_sample"
        ),
        code=code_hash("read_lens"),
    message:
        doing("read_lens", "Read all heads by the logit lens: {wildcards.experiment}")
    script:
        "../scripts/read_lens.py"
