"""Draw random heads that match the first method's by layer and are none of them."""

from headpursuit.method.heads import draw_control, read_heads, write_heads
from headpursuit.run.experiments import condition_name
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write condition, layer and head."""
    params = snakemake.params
    selected = read_heads([snakemake.input.selected[0]])
    drawn = {}
    for k in params.k:
        own = selected[condition_name(params.method, k)]
        for draw in range(params.draws):
            name = condition_name("random", k, draw)
            drawn[name] = draw_control(
                own, params.n_heads, params.seed, params.name, name, params.layers
            )
    write_heads(snakemake.output[0], drawn)


if __name__ == "__main__":
    run_rule(main, snakemake)
