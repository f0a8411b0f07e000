#!/usr/bin/env bash
# What recipes share; to be sourced after scripts/environment.sh. RUN is a folder that holds RUN/corpus.
# A step that is done is not done again; training goes on from its last checkpoint.

# Where other jobs share the CPU, torch's threads else wait for one another in busy loops, and training nearly stops.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}

device() { python -c 'import torch; print("" if torch.cuda.is_available() else "--cpu")'; }
directions() { tail -n +2 "$1/corpus/directions.tsv" | cut -f 1; }
task_flags() {
    echo --task multilingual_translation_moe --lang-dict "$1/corpus/languages.txt" --encoder-langtok src --decoder-langtok
}

# collect RUN YAML [FOLDER]: RUN/corpus, collected and cleaned as the YAML file says; its paths text/… are those of FOLDER.
collect() {
    mkdir -p "$1"
    [ -z "${3:-}" ] || ln -sfn "$3" "$1/text"
    cp "$2" "$1/corpus.yaml"
    bash "$root/data_prep/collect.sh" "$1/corpus.yaml" "$1/corpus"
    bash "$root/data_prep/clean.sh" "$1/corpus" --config "$1/corpus.yaml"
}

# train RUN UPDATES FLAGS…: all directions of the corpus with fairseq's train command.
train() {
    local run=$1 updates=$2 flags
    [ ! -f "$run/trained" ] || { echo "train: $run is trained, skipped"; return 0; }
    mapfile -t flags <"$run/corpus/flags.txt"
    moe-nmt train "$run/corpus/data-bin" $(device) "${flags[@]}" \
        --criterion moe_label_smoothed_cross_entropy --optimizer moe_adam --adam-betas '(0.9, 0.98)' --lr-scheduler inverse_sqrt \
        --max-update "$updates" --num-workers 0 --log-format simple --log-interval 100 \
        --save-interval-updates 500 --keep-interval-updates 1 --no-epoch-checkpoints --save-dir "$run/checkpoints" \
        --tensorboard-logdir "$run/tensorboard" --log-file "$run/train.log" "${@:3}" |
        python "$root/scripts/show_progress.py" "$updates"
    touch "$run/trained"
}

# translate RUN FLAGS…: the test set of every direction by the best checkpoint.
translate() {
    moe-nmt translate "$1/checkpoints/checkpoint_best.pt" "$1/corpus/data-bin" --output "$1/translations" --max-tokens 4000 "${@:2}"
}

# evaluate RUN FLAGS…: the same translations, scored: RUN/evaluation/index.html shows them.
evaluate() {
    moe-nmt evaluate "$1/checkpoints/checkpoint_best.pt" "$1/corpus/data-bin" --output "$1/evaluation" --max-tokens 4000 "${@:2}"
}
