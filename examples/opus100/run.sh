#!/usr/bin/env bash
# English to and from 94 languages on OPUS-100: bash examples/opus100/run.sh [RUN]
# Needs the internet, and a GPU to be done in days. RUN (default: runs/opus100) gets everything that is made; a second call
# goes on from there. UPDATES in the environment makes the training longer or shorter.
set -euo pipefail
clone=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
run=$(realpath -m "${1:-$clone/runs/opus100}")
cd "$clone"
source scripts/environment.sh
source scripts/recipe.sh

buckets=(--high-from 500000 --low-from 100000) # a language has at most 1,000,000 pairs, before cleaning

collect "$run" examples/opus100/corpus.yaml
bash data_prep/prepare.sh "$run/corpus" --vocab-size 64000 --temperature 5 "${buckets[@]}"
train "$run" "${UPDATES:-200000}" --arch transformer_moe_base --moe-freq 2 --moe-router 'top_k(k=2)' \
    --moe-experts 'ffn(count=32)' --moe-losses '[load_balancing(weight=0.01)]' --moe-regularizers '[eom(p=0.2)]' \
    --label-smoothing 0.1 --dropout 0.1 --clip-norm 1 --bf16 --max-tokens 8192 --update-freq 4 --lr 0.002 --warmup-updates 8000 \
    --sampling-method temperature --sampling-temperature 5 --save-interval-updates 10000 --max-tokens-valid 16384 \
    "${buckets[@]}"
evaluate "$run" --bf16 --max-tokens 16000 "${buckets[@]}"
moe-nmt report "$run" --output "$run/report" "${buckets[@]}"
