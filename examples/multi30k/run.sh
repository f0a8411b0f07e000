#!/usr/bin/env bash
# English to and from German, French and Czech on Multi30k: bash examples/multi30k/run.sh FOLDER [RUN]
# FOLDER holds train.LANG.txt.gz, val.LANG.txt.gz and test_2016_flickr.LANG.txt.gz for eng_Latn, deu_Latn, fra_Latn and
# ces_Latn, line-aligned. RUN (default: runs/multi30k) gets everything that is made; a second call goes on from there.
set -euo pipefail
folder=$(realpath "${1:?usage: bash examples/multi30k/run.sh FOLDER [RUN]}")
clone=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
run=$(realpath -m "${2:-$clone/runs/multi30k}")
cd "$clone"
source scripts/environment.sh
source scripts/recipe.sh

collect "$run" examples/multi30k/corpus.yaml "$folder"
bash data_prep/prepare.sh "$run/corpus" --vocab-size 6000 --temperature 5 --max-pieces 80
train "$run" "${UPDATES:-4500}" --arch transformer_moe_tiny --encoder-layers 3 --decoder-layers 3 --moe-freq 3 \
    --moe-router 'top_k(k=2)' --moe-experts 'ffn(count=8)' --moe-losses '[load_balancing(weight=0.01)]' \
    --label-smoothing 0.1 --dropout 0.1 --clip-norm 1 --max-tokens 3000 --lr 0.005 --warmup-updates 1000 \
    --sampling-method concat
evaluate "$run"
moe-nmt report "$run" --output "$run/report"
