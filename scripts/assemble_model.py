"""Put language model, tower and projector together as an image-text model."""

from pathlib import Path

from headpursuit.data.sources import write_made_provenance
from headpursuit.data.tower import assemble, load_trained, make_processor
from headpursuit.method.models import model_folder
from headpursuit.run.files import sha256
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Save the model and its processor; its own provenance.json is written last."""
    params, files = snakemake.params, snakemake.input
    trained, provenance = str(files.tower), Path(snakemake.output[0])
    language_model = model_folder(files.model, params.language_model)
    processor = make_processor(language_model, params.tower)
    model = assemble(language_model, params.tower, processor.image_token_id)
    load_trained(model, trained, params.samples)
    provenance.parent.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(provenance.parent)
    processor.save_pretrained(provenance.parent)
    origin, tools = {"tower_sha256": sha256(trained)}, ("torch", "transformers")
    write_made_provenance(provenance, "assembled", files.model, origin, tools)


if __name__ == "__main__":
    run_rule(main, snakemake)
