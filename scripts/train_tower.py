"""Train the demo's vision tower and projector through a frozen language model."""

import logging
from importlib.metadata import version

import torch
from headpursuit.data import tower
from headpursuit.method.models import model_folder
from headpursuit.run.files import read_json, sha256, write_json
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write what was trained as float16 safetensors, and its record: data, accuracy, versions."""
    params, files, output = snakemake.params, snakemake.input, snakemake.output
    folder = model_folder(files.model, params.language_model)
    build, samples, seed = params.build, params.samples, params.seed
    torch.manual_seed(seed)
    processor = tower.make_processor(folder, build["tower"])
    model = tower.assemble(folder, build["tower"], processor.image_token_id, torch.bfloat16)
    classes, images = tower.read_parts(files.data, samples, processor)
    question = tower.ask(processor, samples, classes)
    tower.train(model, images["selection"], question, build["training"], seed)
    tower.save_trained(model, output.tower, samples)
    tower.load_trained(model.float(), output.tower, samples)  # what is kept is what is measured
    accuracy = tower.accuracy(model, images["evaluation"], question)
    logging.info("on images it never saw: %s", accuracy)
    source = read_json(files.data)
    record = {
        "data": {key: source.get(key) for key in ("name", "id", "version", "commit", "licence")},
        "files": [{key: file[key] for key in ("path", "sha256")} for file in source["files"]],
        "samples": dict(samples),
        "trained_images": len(images["selection"][1]),
        "language_model": sha256(folder / "model.safetensors"),
        "question": question[0],
        "build": dict(build),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "accuracy": accuracy,
        "sha256": sha256(output.tower),
        "tools": {name: version(name) for name in ("torch", "transformers")},
    }
    write_json(output.record, record)


if __name__ == "__main__":
    run_rule(main, snakemake)
