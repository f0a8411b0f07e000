#!/usr/bin/env bash
# From an empty clone to a trained multilingual mixture-of-experts model, its translations and their scores.
# Everything it makes lies under runs/quickstart; a second run goes on where the first stopped and redoes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
run=runs/quickstart
step() { printf '\n== %s (%s)\n' "$1" "$2"; }

step "1/5 environment in .venv" "2 to 5 minutes, once"
source scripts/environment.sh
source scripts/recipe.sh

step "2/5 corpus: English and 9 languages in 7 scripts, from the Unicode CLDR" "half a minute"
bash data_prep/cldr.sh "$run/corpus" --languages deu,fra,spa,rus:6000,ell,heb,hin:1500,jpn,kat:500
bash data_prep/prepare.sh "$run/corpus" --vocab-size 2400

step "3/5 training transformer_moe_tiny: 2+2 layers, 4 experts in every second, 2 of them per token" "3 to 8 minutes"
train "$run" 2500 --arch transformer_moe_tiny --moe-freq 2 --moe-router 'top_k(k=2)' --moe-experts 'ffn(count=4)' \
    --moe-losses '[load_balancing(weight=0.01)]' --label-smoothing 0.1 --dropout 0 --clip-norm 1 \
    --sampling-method temperature --sampling-temperature 5 --max-tokens 1200 --lr 0.005 --warmup-updates 300

step "4/5 evaluation: the test sets of 18 directions translated and scored" "half a minute"
# A direction is high-resource from 5,000 training pairs on, low-resource from 1,000.
evaluate "$run" --high-from 5000 --low-from 1000

step "5/5 expert load per language" "seconds"
moe-nmt routing "$run/checkpoints/checkpoint_best.pt" "$run/corpus/data-bin" \
    --json "$run/expert_load.json" --plot "$run/expert_load.png"

printf '\nDone in %d:%02d minutes.\nscores, examples, pictures: %s\nexpert load: %s\ncurves: .venv/bin/tensorboard --logdir %s\n' \
    $((SECONDS / 60)) $((SECONDS % 60)) "$run/evaluation/index.html" "$run/expert_load.png" "$run/tensorboard"
