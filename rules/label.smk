# Toxic words: labelled, split, and turned into rows of the unembedding matrix.

LABELLER = config["labeller"]
LABEL_PROMPT = str(beside(LABELLER["prompt"]))
LEXICON = f"<resources>/{LABELLER['lexicon']['source']}/provenance.json"
PROMPTS_TO_LABEL = branch(
    "prompt" in config["words"]["texts"], then="<results>/prompts/{dataset}.parquet"
)
# A job that may start its own server asks for a GPU and for room to load a model of 43 GB; one
# whose server is elsewhere for neither.
OLLAMA_GPU = 0 if LABELLER["ollama"]["host"] else GPU
OLLAMA_MB = 2000 if LABELLER["ollama"]["host"] else 48000


rule label_responses:
    """Name the toxic words of each baseline response (and prompt, where the config says so)."""
    input:
        responses="<results>/generations/{dataset}/baseline.parquet",
        prompts=PROMPTS_TO_LABEL,
        prompt_file=branch(LABELLER["backend"] != "lexicon", then=LABEL_PROMPT),
        lexicon=branch(LABELLER["backend"] == "lexicon", then=LEXICON),
    output:
        "<results>/labels/{dataset}.parquet",
    log:
        "<logs>/label_responses/{dataset}.log",
    benchmark:
        "<benchmarks>/label_responses/{dataset}.tsv"
    priority: AWAITED
    conda:
        "../envs/label.yaml"
    resources:
        mem_mb=by_attempt(OLLAMA_MB if LABELLER["backend"] == "ollama" else 2000),
        runtime=by_attempt(2880),
        gpu=OLLAMA_GPU if LABELLER["backend"] == "ollama" else 0,
    params:
        labeller={key: value for key, value in LABELLER.items() if key != "second"},
        content=None if LABELLER["backend"] == "lexicon" else content(LABEL_PROMPT),
        code=code_hash("label_responses"),
    script:
        "../scripts/label_responses.py"


# The same texts, labelled by labeller.second.
use rule label_responses as label_second with:
    input:
        responses="<results>/generations/{dataset}/baseline.parquet",
        prompts=PROMPTS_TO_LABEL,
        prompt_file=branch(LABELLER["second"] != "lexicon", then=LABEL_PROMPT),
        lexicon=branch(LABELLER["second"] == "lexicon", then=LEXICON),
    output:
        "<results>/labels/second/{dataset}.parquet",
    log:
        "<logs>/label_second/{dataset}.log",
    benchmark:
        "<benchmarks>/label_second/{dataset}.tsv"
    priority: 0
    resources:
        mem_mb=by_attempt(OLLAMA_MB if LABELLER["second"] == "ollama" else 2000),
        runtime=by_attempt(2880),
        gpu=OLLAMA_GPU if LABELLER["second"] == "ollama" else 0,
    params:
        labeller={**LABELLER, "backend": LABELLER["second"]},
        content=None if LABELLER["second"] == "lexicon" else content(LABEL_PROMPT),
        code=code_hash("label_responses"),


rule summarise_labels:
    """Replies, parse failures, retries, dropped words, speed and the most frequent words, masked."""
    input:
        "<results>/labels/{dataset}.parquet",
    output:
        json="<results>/labels/{dataset}.summary.json",
        html=report(
            "<results>/labels/{dataset}.summary.html",
            caption="../report/labels.rst",
            category="6 Labels",
            labels={"result": "labelling of {dataset}"},
        ),
    log:
        "<logs>/summarise_labels/{dataset}.log",
    benchmark:
        "<benchmarks>/summarise_labels/{dataset}.tsv"
    conda:
        "../envs/label.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        code=code_hash("summarise_labels"),
    script:
        "../scripts/summarise_labels.py"


rule compare_labels:
    """How far the second labeller agrees with the first: by response and by word."""
    input:
        first="<results>/labels/{dataset}.parquet",
        second="<results>/labels/second/{dataset}.parquet",
    output:
        "<results>/labels/{dataset}.agreement.csv",
    log:
        "<logs>/compare_labels/{dataset}.log",
    benchmark:
        "<benchmarks>/compare_labels/{dataset}.tsv"
    conda:
        "../envs/label.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        code=code_hash("compare_labels"),
    script:
        "../scripts/compare_labels.py"


rule labels:
    """All labels, what they amount to and, where there are two labellers, how far they agree."""
    input:
        collect("<results>/labels/{dataset}.parquet", dataset=DATASETS),
        collect("<results>/labels/{dataset}.summary.html", dataset=DATASETS),
        branch(
            LABELLER["second"],
            then=collect("<results>/labels/{dataset}.agreement.csv", dataset=DATASETS),
        ),


rule split_words:
    """The most frequent labelled words (or the user's own), split into selection and held-out."""
    input:
        labels=branch(not config["words"]["file"], then="<results>/labels/{dataset}.parquet"),
        words=branch(config["words"]["file"], then=config["words"]["file"]),
        responses=branch(
            config["words"]["file"], then="<results>/generations/{dataset}/baseline.parquet"
        ),
    output:
        "<results>/words/{dataset}.csv",
    log:
        "<logs>/split_words/{dataset}.log",
    benchmark:
        "<benchmarks>/split_words/{dataset}.tsv"
    priority: AWAITED
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        words=config["words"],
        content=config["words"]["file"] and content(config["words"]["file"]),
        matching=MATCHING,
        seed=config["seed"],
        code=code_hash("split_words"),
    script:
        "../scripts/split_words.py"


rule build_dictionary:
    """The rows of the unembedding matrix that each word has, and those that both splits share."""
    input:
        words="<results>/words/{dataset}.csv",
        model=MODEL_FILES,
    output:
        "<results>/dictionaries/{dataset}.csv",
    log:
        "<logs>/build_dictionary/{dataset}.log",
    benchmark:
        "<benchmarks>/build_dictionary/{dataset}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(10),
    params:
        model=MODEL,
        dictionary=config["dictionary"],
        code=code_hash("build_dictionary"),
    script:
        "../scripts/build_dictionary.py"
