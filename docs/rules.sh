#!/bin/sh
# Draws docs/pictures/rules.svg: the rules behind `snakemake cards` with config.yaml, without edges that follow
# from others. Run it at the top of the repository, with Graphviz and the environment in the path.
set -eu
snakemake --rulegraph dot cards 2>/dev/null |
    sed -E '/^\t([0-9]+) -> \1$/d
        s/, color = "[^"]*"//
        s/, style="rounded"//
        s/style=rounded,/style="rounded,filled", fillcolor="#eef2f7", color="#57606a",/
        s/bgcolor=white/bgcolor=transparent/
        s/penwidth=2/penwidth=1/' |
    tred | dot -Tsvg >docs/pictures/rules.svg
