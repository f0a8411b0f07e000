#!/usr/bin/env bash
# English and 12 languages in three sizes, both directions: bash examples/low_resource_study/corpus.sh FOLDER RUN
# FOLDER holds {train,valid,test}.LANG.txt.gz, line-aligned over all languages and split by chapters, so that no test
# verse is seen in any language. RUN/corpus gets the corpus. HIGH, LOW and VERY_LOW (languages) and VOCABULARY (pieces) in
# the environment choose otherwise. Needs moe-nmt on the PATH (scripts/environment.sh).
set -euo pipefail
folder=$(realpath "${1:?usage: corpus.sh FOLDER RUN}") text=$(realpath -m "$2")/text corpus=$(realpath -m "$2")/corpus
cd "$(dirname "$0")/../.."

# In each size some languages are close to one of a larger size, in its script or in another, and some are alone.
read -ra high <<<"${HIGH:-deu_Latn spa_Latn rus_Cyrl arb_Arab}"
read -ra low <<<"${LOW:-swe_Latn fra_Latn ell_Grek hun_Latn}"           # swe ~ deu, fra ~ spa
read -ra very_low <<<"${VERY_LOW:-ita_Latn ukr_Cyrl heb_Hebr tgl_Latn}" # ita ~ spa, ukr ~ rus, heb ~ arb
others=("${high[@]}" "${low[@]}" "${very_low[@]}")

python -m examples.low_resource_study.select_verses "$folder" "$text" \
    eng_Latn "${high[@]}" "${low[@]/%/:2000}" "${very_low[@]/%/:500}"
bash data_prep/import_multiparallel.sh "$text" "$corpus" --pairs "$(printf 'eng_Latn-%s\n' "${others[@]}" | paste -sd,)"
bash data_prep/prepare.sh "$corpus" --vocab-size "${VOCABULARY:-8000}" --temperature 5

# train_probe: the first 150 training pairs of each language pair, to be scored as held-out ones are.
for other in "${others[@]}"; do
    pair=eng_Latn-$other
    probe=$corpus/data-bin/train_probe.$pair
    [ ! "$probe.$other.idx" -nt "$corpus/data-bin/train.$pair.$other.idx" ] || continue
    for side in eng_Latn "$other"; do
        head -n 150 "$corpus/encoded/train.$pair.$side" >"$corpus/encoded/train_probe.$pair.$side"
    done
    moe-nmt preprocess --source-lang eng_Latn --target-lang "$other" --srcdict "$corpus/subwords/dict.txt" --joined-dictionary \
        --validpref "$corpus/encoded/train_probe.$pair" --destdir "$corpus/probe" >"$corpus/probe.log" 2>&1
    for file in "$corpus/probe/valid.$pair".*; do mv "$file" "$probe.${file##*/valid.$pair.}"; done
done
