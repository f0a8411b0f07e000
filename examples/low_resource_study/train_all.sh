#!/usr/bin/env bash
# All rows with all their seeds, several side by side: bash examples/low_resource_study/train_all.sh RUN
# ROWS (separated by spaces) chooses, SEEDS=N overrides the number of seeds; PARALLEL: how many at once; UPDATES and
# FLAGS: see train.sh. A curriculum follows from the run of another row, so these come last.
set -euo pipefail
here=$(realpath "$(dirname "$0")") run=$(realpath "$1")
rows=${ROWS:-$(tail -n +2 "$here/rows.tsv" | cut -f 1)}

queue() { # queue MATCH…: the chosen rows whose flags match, with each seed
    for row in $rows; do
        line=$(grep "^$row"$'\t' "$here/rows.tsv") || line="$row"$'\t1' # train.sh says that there is no such row
        if grep -q "$@" <<<"$line"; then
            for seed in $(seq "${SEEDS:-$(cut -f 2 <<<"$line")}"); do echo "$row $seed"; done
        fi
    done
}
{ queue -v from:; queue from:; } | xargs -r -L 1 -P "${PARALLEL:-1}" bash "$here/train.sh" "$run"
