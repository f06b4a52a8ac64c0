"""Draw random heads that match the selected ones by layer and are none of them."""

from headpursuit.heads import draw_control, read_heads, write_heads
from headpursuit.rule import run_rule


def main(snakemake):
    """Write layer and head."""
    wildcards, params = snakemake.wildcards, snakemake.params
    heads = draw_control(
        read_heads(snakemake.input.selected),
        params.n_heads,
        params.seed,
        wildcards.dataset,
        f"random-k{wildcards.k}-d{wildcards.draw}",
    )
    write_heads(snakemake.output[0], heads)


if __name__ == "__main__":
    run_rule(main, snakemake)
