#!/usr/bin/env bash
# The study in one command: bash examples/low_resource_study/run.sh FOLDER [RUN]
# FOLDER: see corpus.sh. RUN (default: runs/low_resource_study) gets everything; a second call goes on from there.
# With a GPU all rows of rows.tsv with three seeds; without one a reduced study: fewer rows, one seed, a smaller model.
# ROWS, SEEDS, PARALLEL, UPDATES and FLAGS in the environment override that (train.sh, train_all.sh).
set -euo pipefail
folder=$(realpath "${1:?usage: bash examples/low_resource_study/run.sh FOLDER [RUN]}")
clone=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
run=$(realpath -m "${2:-$clone/runs/low_resource_study}")
cd "$clone"
source scripts/environment.sh
source scripts/recipe.sh
study=examples/low_resource_study

if [ -z "$(device)" ]; then
    export PARALLEL=${PARALLEL:-16} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
else
    export ROWS=${ROWS-dense moe dropout eom dropout+eom} SEEDS=${SEEDS-1} UPDATES=${UPDATES-2500}
    export FLAGS=${FLAGS---encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --moe-experts ffn(count=16,inner_dim=256) --lr 0.004}
fi
bash $study/corpus.sh "$folder" "$run"
bash $study/train_all.sh "$run"
python -m examples.low_resource_study.table "$run" --json "$run/results.json" --markdown "$run/results.md" --plots "$run"
