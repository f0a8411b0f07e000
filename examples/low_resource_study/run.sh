#!/usr/bin/env bash
# The study in one command: bash examples/low_resource_study/run.sh FOLDER [RUN]
# FOLDER: see corpus.sh. RUN (default: runs/low_resource_study) gets everything; a second call goes on from there.
# With a GPU all rows of rows.tsv with all their seeds, 16 side by side (start CUDA MPS before, or they take turns);
# without one a reduced study: 6 languages, a smaller model, five rows, one seed. ROWS, SEEDS, PARALLEL, UPDATES and FLAGS
# (train_all.sh, train.sh), HIGH, LOW, VERY_LOW and VOCABULARY (corpus.sh) in the environment choose otherwise.
set -euo pipefail
folder=$(realpath "${1:?usage: bash examples/low_resource_study/run.sh FOLDER [RUN]}")
clone=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
run=$(realpath -m "${2:-$clone/runs/low_resource_study}")
cd "$clone"
source scripts/environment.sh
source scripts/recipe.sh
study=examples/low_resource_study

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ -z "$(device)" ]; then
    export PARALLEL=${PARALLEL:-16}
else
    export HIGH=${HIGH-deu_Latn spa_Latn} LOW=${LOW-swe_Latn fra_Latn} VERY_LOW=${VERY_LOW-ita_Latn ukr_Cyrl}
    export VOCABULARY=${VOCABULARY-4000} ROWS=${ROWS-moe eom cmr curriculum eom+curriculum} SEEDS=${SEEDS-1}
    small="--encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --moe-experts ffn(count=32,inner_dim=256)"
    small+=" --max-tokens 2048 --lr 0.003 --validate-interval-updates 400 --save-interval-updates 400"
    export PARALLEL=${PARALLEL:-$(nproc)} UPDATES=${UPDATES-4000} FLAGS=${FLAGS-$small}
fi
bash $study/corpus.sh "$folder" "$run"
bash $study/train_all.sh "$run"
python -m examples.low_resource_study.table "$run" --json "$run/results.json" --markdown "$run/results.md" --plots "$run"
