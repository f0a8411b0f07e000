#!/usr/bin/env bash
# One row of rows.tsv with one seed, trained and its test set translated: bash examples/low_resource_study/train.sh RUN ROW SEED
# Needs RUN/corpus and moe-nmt on the PATH; everything goes to RUN/runs/ROW/SEED. What is done is skipped, and training goes
# on from its last checkpoint. UPDATES (2000): length of the training. FLAGS: more flags for it; those of the row win.
set -euo pipefail
here=$(realpath "$(dirname "$0")") root=$(realpath "$here/../..")
run=$(realpath "$1") row=$2 seed=$3 updates=${UPDATES:-2000}
out=$run/runs/$row/$seed
source "$root/scripts/recipe.sh"
[ ! -f "$out/translated" ] || exit 0
grep -q "^$row"$'\t' "$here/rows.tsv" || { echo "train.sh: $here/rows.tsv has no row '$row'" >&2; exit 2; }
mkdir -p "$out"
exec 9>"$out/lock" && flock 9 # another call for the same run waits, and so does a run that follows from it

# What all rows share. Experts are half as wide as the dense network, and a token goes through two of them.
flags=(
    --arch transformer_moe_tiny --encoder-embed-dim 256 --encoder-ffn-embed-dim 1024 --moe-freq 1
    --moe-router 'top_k(k=2)' --moe-experts 'ffn(count=32,inner_dim=512)' --moe-losses '[load_balancing(weight=0.01)]'
    --dropout 0 --label-smoothing 0.1 --sampling-method temperature --sampling-temperature 5
    --max-tokens 8192 --lr 0.002 --warmup-updates 400 --clip-norm 1
)
read -ra more <<<"${FLAGS:-} $(awk -F '\t' -v row="$row" '$1 == row { print $3 }' "$here/rows.tsv")"
for flag in "${more[@]}"; do # from:ROW is the curriculum that follows from the run of that row with the same seed
    if [[ $flag == from:* ]]; then
        first=$run/runs/${flag#from:}/$seed
        { [ -d "$first" ] && flock "$first/lock" test -f "$first/trained"; } || { echo "train.sh: train the row ${flag#from:} first" >&2; exit 2; }
        moe-nmt curriculum from-run "$first" --phases 3 --output "$out/curriculum.tsv" >"$out/curriculum.txt"
        flag=$out/curriculum.tsv
    fi
    flags+=("$flag")
done

# quietly FILE COMMAND…: its output into the file, of which a failure shows the end.
quietly() { "${@:2}" >>"$1" 2>&1 || { tail -n 5 "$1" >&2; echo "train.sh: $row, seed $seed failed: see $1" >&2; return 1; }; }
cpu=$(device)

if [ ! -f "$out/trained" ]; then
    echo "$updates updates, ${cpu:---bf16} ${FLAGS:-}" >"$out/setting.txt"
    quietly "$out/train.out" moe-nmt train "$run/corpus/data-bin" ${cpu:---bf16} $(task_flags "$run") \
        --lang-pairs "$(directions "$run" | paste -sd,)" --criterion moe_label_smoothed_cross_entropy \
        --optimizer moe_adam --adam-betas '(0.9, 0.98)' --lr-scheduler inverse_sqrt --seed "$seed" --max-update "$updates" \
        --valid-subset valid,train_probe --max-tokens-valid 16384 --best-checkpoint-metric nll_loss --no-epoch-checkpoints \
        --validate-interval-updates 200 --save-interval-updates 200 --keep-interval-updates 1 \
        --validate-interval 100000 --save-interval 100000 --save-dir "$out/checkpoints" --num-workers 0 \
        --log-format json --log-interval 100 --log-file "$out/train.log" --tensorboard-logdir "$out/tensorboard" "${flags[@]}"
    touch "$out/trained"
fi
quietly "$out/translate.out" moe-nmt translate "$out/checkpoints/checkpoint_best.pt" "$run/corpus/data-bin" \
    --output "$out/translations" --max-tokens 24000 $cpu
touch "$out/translated"
echo "$row, seed $seed: trained and translated"
