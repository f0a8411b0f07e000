#!/usr/bin/env bash
# English to and from 28 languages on the New Testament: bash examples/new_testament/run.sh FOLDER [RUN]
# FOLDER holds SPLIT.LANG.txt.gz for the splits train, valid and test and the languages of corpus.yaml, line-aligned by verse.
# RUN (default: runs/new_testament) gets everything that is made; a second call goes on from there. UPDATES in the
# environment makes the training longer or shorter.
set -euo pipefail
folder=$(realpath "${1:?usage: bash examples/new_testament/run.sh FOLDER [RUN]}")
clone=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
run=$(realpath -m "${2:-$clone/runs/new_testament}")
cd "$clone"
source scripts/environment.sh
source scripts/recipe.sh
buckets=(--high-from 5000 --low-from 3000) # of 28 languages 25 are whole; Chamorro and Manx lack half, Potawatomi most

collect "$run" examples/new_testament/corpus.yaml "$folder"
bash data_prep/prepare.sh "$run/corpus" --vocab-size 16000 --temperature 5 "${buckets[@]}"
train "$run" "${UPDATES:-4000}" --arch transformer_moe_tiny --encoder-layers 3 --decoder-layers 3 --moe-freq 3 \
    --moe-router 'top_k(k=2)' --moe-experts 'ffn(count=8)' --moe-losses '[load_balancing(weight=0.01)]' \
    --moe-regularizers '[eom(p=0.1)]' --label-smoothing 0.1 --dropout 0.1 --clip-norm 1 --max-tokens 3000 \
    --lr 0.004 --warmup-updates 800 --sampling-method temperature --sampling-temperature 1.5 \
    --save-interval-updates 2000 --max-tokens-valid 6000 "${buckets[@]}"
evaluate "$run" "${buckets[@]}"
moe-nmt report "$run" --output "$run/report" "${buckets[@]}"
