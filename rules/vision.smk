# Figure 1: image data sets, the heads behind their classes, and answers without them.

VISION = config["vision"]
IMAGE_DATASETS = VISION["datasets"]
VLM = config["models"][VISION["model"]]
# Weights, a batch of images and some room.
VLM_MB = 3000 + int(VLM["parameters"] * (4 if VLM["dtype"] == "float32" else 2) * 1.5 / 1e6)
BUILD = VISION["build"] or {}
LANGUAGE_MODEL = BUILD.get("language_model", VISION["model"])
LEARNED = config["image_datasets"][BUILD.get("dataset", IMAGE_DATASETS[0])]
# A model that is put together here, or one that is whole.
VLM_FILES = (
    f"<resources>/assembled/{VISION['model']}/provenance.json"
    if BUILD
    else model_files(VISION["model"])
)

# score.parts files share a data set's evaluation images.
ANSWERS = collect(
    "<results>/answers/{{dataset}}/part-{part}.parquet",
    part=range(1, config["score"]["parts"] + 1),
)


rule prepare_images:
    """Draw a data set's images, class by class, for selection and for evaluation."""
    input:
        data=source_record("image_datasets/{dataset}/source"),
    output:
        images="<results>/images/{dataset}.parquet",
        classes="<results>/classes/{dataset}.csv",
    log:
        "<logs>/prepare_images/{dataset}.log",
    benchmark:
        "<benchmarks>/prepare_images/{dataset}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(60),
    params:
        dataset=lookup("image_datasets/{dataset}", within=config),
        images=VISION["images"],
        seed=config["seed"],
        code=code_hash("prepare_images"),
    script:
        "../scripts/prepare_images.py"


rule train_tower:
    """Train the demo's vision tower and projector through a frozen language model."""
    input:
        data=f"<resources>/{LEARNED['source']}/provenance.json",
        model=model_files(LANGUAGE_MODEL),
    output:
        tower="<results>/tower/tower.safetensors",
        record="<results>/tower/tower.json",
    log:
        "<logs>/train_tower.log",
    benchmark:
        "<benchmarks>/train_tower.tsv"
    conda:
        "../envs/model.yaml"
    threads: config["compute"]["threads"]
    resources:
        mem_mb=by_attempt(VLM_MB * 2),
        runtime=by_attempt(240),
    params:
        language_model=config["models"][LANGUAGE_MODEL],
        dataset=LEARNED,
        build={key: value for key, value in BUILD.items() if key != "trained"},
        template=lambda wildcards: VISION["template"],  # its braces are no wildcards
        seed=config["seed"],
        code=code_hash("train_tower"),
    script:
        "../scripts/train_tower.py"


rule assemble_model:
    """Put language model, tower and projector together as an image-text model like any other."""
    input:
        model=model_files(LANGUAGE_MODEL),
        tower=branch(
            BUILD.get("trained"),
            then=str(beside(BUILD.get("trained") or "")),
            otherwise="<results>/tower/tower.safetensors",
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
        mem_mb=by_attempt(VLM_MB * 2),
        runtime=by_attempt(60),
    params:
        language_model=config["models"][LANGUAGE_MODEL],
        dataset=LEARNED,
        tower=BUILD.get("tower"),
        content=BUILD.get("trained") and content(beside(BUILD["trained"])),
        code=code_hash("assemble_model"),
    script:
        "../scripts/assemble_model.py"


rule build_class_dictionary:
    """The class names' rows of the unembedding matrix."""
    input:
        classes="<results>/classes/{dataset}.csv",
        model=VLM_FILES,
    output:
        "<results>/class_dictionaries/{dataset}.csv",
    log:
        "<logs>/build_class_dictionary/{dataset}.log",
    benchmark:
        "<benchmarks>/build_class_dictionary/{dataset}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(10),
    params:
        model=VLM,
        dictionary=VISION["dictionary"],
        code=code_hash("build_class_dictionary"),
    script:
        "../scripts/build_class_dictionary.py"


rule cache_image_activations:
    """What each head's slice of the output projection reads, averaged over the image tokens."""
    input:
        images="<results>/images/{dataset}.parquet",
        classes="<results>/classes/{dataset}.csv",
        model=VLM_FILES,
    output:
        collect(
            "<results>/image_activations/{{dataset}}/layer-{layer}.parquet",
            layer=[f"{layer:02d}" for layer in range(VLM["layers"])],
        ),
    log:
        "<logs>/cache_image_activations/{dataset}.log",
    benchmark:
        "<benchmarks>/cache_image_activations/{dataset}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    threads: config["compute"]["threads"]
    resources:
        mem_mb=by_attempt(VLM_MB),
        runtime=by_attempt(240),
        gpu=GPU,
    params:
        model=VLM,
        device=config["compute"]["device"],
        template=lambda wildcards: VISION["template"],  # its braces are no wildcards
        object=lookup("image_datasets/{dataset}/object", within=config),
        batch_images=VISION["batch_images"],
        dtype=config["activations"]["dtype"],
        code=code_hash("cache_image_activations"),
    script:
        "../scripts/cache_image_activations.py"


rule rank_image_heads:
    """Rank all heads by what the class names' tokens say of their writes at image tokens."""
    input:
        activations=rules.cache_image_activations.output,
        dictionary="<results>/class_dictionaries/{dataset}.csv",
        unrelated=UNRELATED_WORDS,
        model=VLM_FILES,
    output:
        "<results>/image_rankings/{dataset}/{method}.csv",
    log:
        "<logs>/rank_image_heads/{dataset}/{method}.log",
    benchmark:
        "<benchmarks>/rank_image_heads/{dataset}/{method}.tsv"
    priority: AWAITED
    conda:
        "../envs/model.yaml"
    threads: config["compute"]["threads"]
    resources:
        mem_mb=by_attempt(VLM_MB),
        runtime=by_attempt(240),
        gpu=GPU,
    params:
        model=VLM,
        device=config["compute"]["device"],
        pursuit=config["pursuit"],
        dictionary=VISION["dictionary"],
        seed=config["seed"],
        content=content(UNRELATED_WORDS),
        code=code_hash("rank_image_heads"),
    script:
        "../scripts/rank_image_heads.py"


rule choose_image_heads:
    """Every condition's heads: the top of each ranking, and random ones matched by layer."""
    input:
        rankings=collect(
            "<results>/image_rankings/{{dataset}}/{method}.csv",
            method=VISION["heads"]["methods"],
        ),
    output:
        "<results>/image_heads/{dataset}.csv",
    log:
        "<logs>/choose_image_heads/{dataset}.log",
    benchmark:
        "<benchmarks>/choose_image_heads/{dataset}.tsv"
    priority: AWAITED
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        heads=VISION["heads"],
        layers=candidate_layers(VISION["heads"], VLM),
        n_heads=VLM["heads"],
        seed=config["seed"],
        code=code_hash("choose_image_heads"),
    script:
        "../scripts/choose_image_heads.py"


rule answer_images:
    """Answers about the evaluation images under every condition, in one load of the model."""
    input:
        images="<results>/images/{dataset}.parquet",
        classes="<results>/classes/{dataset}.csv",
        # The data set's own heads, and with vision.cross those of the others.
        heads=branch(
            VISION["cross"],
            then=collect("<results>/image_heads/{other}.csv", other=IMAGE_DATASETS),
            otherwise=["<results>/image_heads/{dataset}.csv"],
        ),
        model=VLM_FILES,
    output:
        "<results>/answers/{dataset}/part-{part}.parquet",
    log:
        "<logs>/answer_images/{dataset}/part-{part}.log",
    benchmark:
        "<benchmarks>/answer_images/{dataset}/part-{part}.tsv"
    priority: LONGEST
    conda:
        "../envs/model.yaml"
    threads: config["compute"]["threads"]
    resources:
        mem_mb=by_attempt(VLM_MB),
        runtime=by_attempt(1440),
        gpu=GPU,
    params:
        model=VLM,
        device=config["compute"]["device"],
        template=lambda wildcards: VISION["template"],  # its braces are no wildcards
        object=lookup("image_datasets/{dataset}/object", within=config),
        batch_images=VISION["batch_images"],
        max_new_tokens=VISION["max_new_tokens"],
        alpha=VISION["heads"]["alpha"],
        parts=config["score"]["parts"],
        products=config["score"]["products"],
        crossed=lambda wildcards: cross_conditions(VISION, wildcards.dataset),
        code=code_hash("answer_images"),
    script:
        "../scripts/answer_images.py"


rule score_answers:
    """Which answers are right, strictly and by their first word."""
    input:
        answers=ANSWERS,
        classes="<results>/classes/{dataset}.csv",
    output:
        "<results>/image_scores/{dataset}.parquet",
    log:
        "<logs>/score_answers/{dataset}.log",
    benchmark:
        "<benchmarks>/score_answers/{dataset}.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        normalise=VISION["normalise"],
        code=code_hash("score_answers"),
    script:
        "../scripts/score_answers.py"


rule publish_figure1:
    """Figure 1's numbers in three formats, its single random draws, overlap and crossed heads."""
    input:
        scores=collect("<results>/image_scores/{dataset}.parquet", dataset=IMAGE_DATASETS),
        heads=collect("<results>/image_heads/{dataset}.csv", dataset=IMAGE_DATASETS),
        classes=collect("<results>/classes/{dataset}.csv", dataset=IMAGE_DATASETS),
        published=workflow.source_path("../data/published.csv"),
    output:
        csv="<results>/tables/figure1.csv",
        md="<results>/tables/figure1.md",
        tex="<results>/tables/figure1.tex",
        draws="<results>/tables/figure1.draws.csv",
        overlap="<results>/tables/figure1.overlap.csv",
        cross="<results>/tables/figure1.cross.csv",
    log:
        "<logs>/publish_figure1.log",
    benchmark:
        "<benchmarks>/publish_figure1.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        datasets=IMAGE_DATASETS,
        model=VISION["model"],
        heads=VISION["heads"],
        iterations=config["pursuit"]["iterations"],
        score=config["score"],
        spread=config["publish"]["spread"],
        published_heads=config["publish"]["published_heads"],
        seed=config["seed"],
        code=code_hash("publish_figure1"),
    script:
        "../scripts/publish_figure1.py"


rule plot_figure1:
    """Figure 1 as bars; the overlap of head sets and their accuracy on each other's data."""
    input:
        table="<results>/tables/figure1.csv",
        draws="<results>/tables/figure1.draws.csv",
        overlap="<results>/tables/figure1.overlap.csv",
        cross="<results>/tables/figure1.cross.csv",
    output:
        bars=[
            "<results>/figures/figure1.pdf",
            report(
                "<results>/figures/figure1.png",
                caption="../report/figure1.rst",
                category="5 Figure 1",
                labels={"result": "figure: right answers"},
            ),
        ],
        overlap=[
            "<results>/figures/figure1.overlap.pdf",
            report(
                "<results>/figures/figure1.overlap.png",
                caption="../report/figure1.overlap.rst",
                category="5 Figure 1",
                labels={"result": "figure: heads of other data sets"},
            ),
        ],
    log:
        "<logs>/plot_figure1.log",
    benchmark:
        "<benchmarks>/plot_figure1.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        colours=config["publish"]["colours"],
        code=code_hash("plot_figure1"),
    script:
        "../scripts/plot_figure1.py"


rule figure1:
    """All of figure 1, and what lies in between."""
    input:
        rules.preflight.output,
        rules.publish_figure1.output,
        rules.plot_figure1.output,
        VLM_FILES,
        branch(BUILD and not BUILD["trained"], then=rules.train_tower.output),
        collect(
            [
                "<results>/images/{dataset}.parquet",
                "<results>/class_dictionaries/{dataset}.csv",
            ],
            dataset=IMAGE_DATASETS,
        ),
        collect(ANSWERS, dataset=IMAGE_DATASETS),
        collect(rules.cache_image_activations.output, dataset=IMAGE_DATASETS),
        collect(
            "<results>/image_rankings/{dataset}/{method}.csv",
            dataset=IMAGE_DATASETS,
            method=VISION["heads"]["methods"],
        ),


# What `all` makes of it.
FIGURE1 = rules.figure1.input
