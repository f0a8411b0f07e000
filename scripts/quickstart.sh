#!/usr/bin/env bash
# From an empty clone to a trained multilingual mixture-of-experts model, its translations and their scores.
# Everything it makes lies under runs/quickstart; a second run goes on where the first stopped, and redoes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
run=runs/quickstart corpus=runs/quickstart/corpus
begin=$(date +%s)
step() { printf '\n== %s (%s) ==\n' "$1" "$2"; }

step "1/6 environment" "about 5 minutes, once"
source scripts/environment.sh
mkdir -p "$run/translations"

step "2/6 corpus: 9 languages and English, from the Unicode CLDR" "half a minute"
bash data_prep/cldr.sh "$corpus" --languages deu,fra,spa,rus:8000,ell,heb,hin:2500,jpn,kat:800
bash data_prep/prepare.sh "$corpus" --vocab-size 1900
directions=$(tail -n +2 "$corpus/directions.tsv" | cut -f 1)
task=(--task multilingual_translation_moe --lang-dict "$corpus/languages.txt" --encoder-langtok src --decoder-langtok)
device=$(python -c 'import torch; print("" if torch.cuda.is_available() else "--cpu")')

step "3/6 training transformer_moe_tiny: 2+2 layers, 4 experts, 2 per token" "about 7 minutes"
if [ ! -f "$run/trained" ]; then
    moe-nmt train "$corpus/data-bin" $device "${task[@]}" --lang-pairs "$(paste -sd, <<<"$directions")" \
        --arch transformer_moe_tiny --moe-router 'top_k(k=2)' --moe-experts 'ffn(count=4)' --moe-freq 2 \
        --criterion moe_label_smoothed_cross_entropy --label-smoothing 0.1 \
        --moe-losses '[load_balancing(weight=0.01)]' \
        --sampling-method temperature --sampling-temperature 2 --max-tokens 1000 --num-workers 1 \
        --optimizer adam --adam-betas '(0.9, 0.98)' --lr 0.004 --lr-scheduler inverse_sqrt --warmup-updates 400 \
        --max-update 3000 --save-interval-updates 500 --keep-interval-updates 1 --no-epoch-checkpoints \
        --save-dir "$run/checkpoints" --tensorboard-logdir "$run/tensorboard" --log-format simple --log-interval 100 \
        --log-file "$run/train.log" | grep --line-buffered -E 'train_inner|valid on' |
        sed -uE 's/^.*train_inner \| //; s/ \| nll_loss_.*$//'
    touch "$run/trained"
fi

step "4/6 translating the test set of every direction" "about 3 minutes"
translate() {
    direction=$1 folder="$run/translations/$1"
    [ ! -f "$folder/generate-test.txt" ] || return 0
    moe-nmt generate "$corpus/data-bin" $device "${task[@]}" --lang-pairs "$direction" \
        --source-lang "${direction%-*}" --target-lang "${direction#*-}" --path "$run/checkpoints/checkpoint_last.pt" \
        --gen-subset test --beam 4 --max-len-a 2 --max-len-b 20 --max-tokens 4000 --num-workers 0 \
        --remove-bpe sentencepiece --results-path "$folder.tmp" >"$folder.log" 2>&1
    mv "$folder.tmp" "$folder"
    echo "translated $direction"
}
while read -r direction; do
    translate "$direction"
done <<<"$directions"

step "5/6 scores" "seconds"
moe-nmt score "$run/translations" --corpus "$corpus" --high-from 5000 --low-from 1500 \
    --json "$run/scores.json" --markdown "$run/scores.md"

step "6/6 expert load per language" "seconds"
moe-nmt routing "$run/checkpoints/checkpoint_last.pt" "$corpus/data-bin" \
    --json "$run/expert_load.json" --plot "$run/expert_load.png"

printf '\nDone in %d minutes. Scores: %s, plot: %s, curves: tensorboard --logdir %s\n' \
    $((($(date +%s) - begin + 30) / 60)) "$run/scores.md" "$run/expert_load.png" "$run/tensorboard"
