#!/usr/bin/env bash
# Three languages are added to a trained model in several ways, which are compared: bash examples/adapters/run.sh [RUN]
# RUN (default: runs/adapters) gets everything that is made; a second call goes on from there. ROWS in the environment
# chooses rows of rows.tsv, UPDATES (1000) and BASE_UPDATES (2500) the lengths of the trainings.
set -euo pipefail
clone=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
run=$(realpath -m "${1:-$clone/runs/adapters}") rows=$clone/examples/adapters/rows.tsv
cd "$clone"
source scripts/environment.sh
source scripts/recipe.sh
new=nld,bul,ita

bash data_prep/cldr.sh "$run/corpus" --languages deu,fra,rus:6000,ell,heb,hin,nld,bul:1500,ita:500
bash data_prep/prepare.sh "$run/corpus" --vocab-size 1000
all=$(directions "$run" | paste -sd,)
added=$(directions "$run" | grep -E "${new//,/|}" | paste -sd,)
old=$(directions "$run" | grep -vE "${new//,/|}" | paste -sd,)

# What the base model and all that follows from it share.
model=(
    --arch transformer_moe_tiny --encoder-layers 4 --decoder-layers 4 --moe-freq 2 --moe-router 'top_k(k=2)'
    --moe-experts 'ffn(count=4)' --moe-losses '[load_balancing(weight=0.01)]' --dropout 0 --label-smoothing 0.1 --clip-norm 1
    --sampling-method temperature --sampling-temperature 5 --max-tokens 2000 --lr 0.005
)

# row NAME UPDATES FLAGS…: a training, the translations of all directions, and their scores.
row() {
    printf '\n== %s\n' "$1"
    mkdir -p "$run/$1"
    ln -sfn ../corpus "$run/$1/corpus"
    train "$run/$1" "$2" "${model[@]}" "${@:3}"
    translate "$run/$1" --directions "$all"
    moe-nmt score "$run/$1/translations" --corpus "$run/corpus" --json "$run/$1/scores.json" >"$run/$1/scores.txt"
}

row base "${BASE_UPDATES:-2500}" --lang-pairs "$old" --warmup-updates 300
while IFS=$'\t' read -r name _ trained_on flags; do
    [[ -z ${ROWS:-} || " $ROWS " == *" $name "* ]] || continue
    [ "$trained_on" = new ] && pairs=$added || pairs=$all
    read -ra more <<<"${flags//LANGUAGES/[$new]}"
    row "$name" "${UPDATES:-1000}" --finetune-from-model "$run/base/checkpoints/checkpoint_best.pt" --lang-pairs "$pairs" \
        --warmup-updates 100 "${more[@]}" </dev/null
done < <(tail -n +2 "$rows")

python -m examples.adapters.table "$run" --new "$new" --json "$run/results.json" --markdown "$run/results.md" --plot "$run/results.png"
