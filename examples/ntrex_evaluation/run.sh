#!/usr/bin/env bash
# Any checkpoint on a benchmark: bash examples/ntrex_evaluation/run.sh CHECKPOINT CORPUS FOLDER [RUN]
# CORPUS is the corpus folder that the model was trained on, for its languages and subwords. FOLDER holds the benchmark as
# NTREX (newstest2019-ref.deu.txt) or FLORES-200 (devtest/deu_Latn.devtest) is published, or line-aligned as
# NAME.LANG.txt.gz. RUN (default: runs/FOLDER's name) gets everything that is made; a second call goes on from there.
# PAIRS=all in the environment also evaluates directions without English.
set -euo pipefail
usage="usage: bash examples/ntrex_evaluation/run.sh CHECKPOINT CORPUS FOLDER [RUN]"
checkpoint=$(realpath "${1:?$usage}") trained=$(realpath "${2:?$usage}") folder=$(realpath "${3:?$usage}")
clone=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
run=$(realpath -m "${4:-$clone/runs/$(basename "$folder")}")
cd "$clone"
source scripts/environment.sh
source scripts/recipe.sh

if [ -d "$folder/devtest" ]; then
    text=(flores text)
elif compgen -G "$folder/newstest2019-*" >/dev/null; then
    text=(ntrex text)
else
    text=(text 'text/*.{language}.txt.gz')
fi
mkdir -p "$run/corpus"
cat >"$run/benchmark.yaml" <<END
languages: [$(paste -sd, "$trained/languages.txt")]
sources:
  - {name: benchmark, format: ${text[0]}, path: "${text[1]}", split: test, pairs: ${PAIRS:-english}}
END
collect "$run" "$run/benchmark.yaml" "$folder"
ln -sfn "$trained/subwords" "$run/corpus/subwords" # those of the checkpoint, not learnt anew
bash data_prep/encode.sh "$run/corpus"
bash data_prep/binarize.sh "$run/corpus"
moe-nmt evaluate "$checkpoint" "$run/corpus/data-bin" --lang-dict "$trained/languages.txt" --output "$run/evaluation"
