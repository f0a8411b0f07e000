"""The corpus folder: what is written is read back, and every mistake in it is refused with a sentence."""

import gzip
import subprocess
import sys

import pytest

from moe_nmt.data import Corpus, CorpusError, Direction, parse_directions
from moe_nmt.data.text import drafting, read_lines, read_pair, rewriting, write_text

ENG_DEU = Direction("eng", "deu")
COUNTS = {"train": 2, "valid": 1, "test": 0}


@pytest.fixture
def corpus(tmp_path):
    """A corpus of one language pair without test set."""
    made = Corpus.empty(tmp_path).adding({ENG_DEU: COUNTS, ENG_DEU.reverse: COUNTS})
    made.save()
    for split, text in {"train": "a\nb\n", "valid": "c\n"}.items():
        for path in made.sides("raw", split, ENG_DEU):
            write_text(path, text)
    return made


def test_reads_back_what_it_wrote(corpus):
    assert Corpus.open(corpus.folder) == corpus
    assert (corpus.folder / "languages.txt").read_text() == "eng\ndeu\n"
    assert (corpus.folder / "directions.tsv").read_text().splitlines() == [
        "direction\ttrain\tvalid\ttest",
        "eng-deu\t2\t1\t0",
        "deu-eng\t2\t1\t0",
    ]


def test_both_directions_share_the_files_of_their_pair(corpus):
    assert corpus.pairs == [ENG_DEU]
    assert corpus.pair(ENG_DEU.reverse) == ENG_DEU
    assert corpus.splits(ENG_DEU) == ["train", "valid"] and corpus.splits(ENG_DEU.reverse) == []
    corpus.check_text(ENG_DEU)


def test_a_held_out_direction_shares_them_too(corpus):
    zero_shot = corpus.adding({ENG_DEU.reverse: {"train": 0, "valid": 1, "test": 0}})
    assert zero_shot.splits(ENG_DEU) == ["train", "valid"]
    assert zero_shot.counts(ENG_DEU.reverse)["train"] == 0
    zero_shot.check_text(ENG_DEU)


def test_directions_with_files_of_their_own_are_two_pairs(corpus):
    """Their training text is counted apart; held-out text under one name serves both."""
    for path in corpus.sides("raw", "train", ENG_DEU.reverse):
        write_text(path, "d\ne\nf\n")
    both = corpus.adding({ENG_DEU.reverse: {"train": 3, "valid": 1, "test": 0}})
    assert both.pairs == [ENG_DEU, ENG_DEU.reverse]
    assert both.pair_counts(ENG_DEU) == {"train": 2, "valid": 1, "test": 0}
    assert both.pair_counts(ENG_DEU.reverse) == {"train": 3, "valid": 0, "test": 0}
    assert both.serving(ENG_DEU.reverse, "train") == ENG_DEU.reverse
    assert both.serving(ENG_DEU.reverse, "valid") == ENG_DEU
    for pair in both.pairs:
        both.check_text(pair)


def test_a_direction_alone_is_a_pair(tmp_path):
    made = Corpus.empty(tmp_path).adding({ENG_DEU: COUNTS})
    for split in ("train", "valid"):
        for path in made.sides("raw", split, ENG_DEU):
            write_text(path, "a\n" * COUNTS[split])
    assert made.pairs == [ENG_DEU] and made.pair_counts(ENG_DEU) == COUNTS


def test_sub_corpora_have_the_subwords_of_their_corpus(corpus):
    for kind in ("mined", "back_translated"):
        Corpus.empty(corpus.folder / "extra" / kind).adding({ENG_DEU: COUNTS}).save()
    assert [extra.kind for extra in corpus.extras] == ["back_translated", "mined"]
    for extra in corpus.extras:
        assert extra.parent == corpus.folder and extra.extras == []
        assert extra.dictionary == corpus.dictionary and extra.reports.parent == extra.folder
    assert corpus.kind == "main" and corpus.parent is None and corpus.bpe == "sentencepiece"
    write_text(corpus.subwords / "bpe.codes", "a b 1\n")
    assert {part.bpe for part in (corpus, *corpus.extras)} == {"fastbpe"}


def test_refuses_a_sub_corpus_of_other_languages(corpus):
    Corpus.empty(corpus.folder / "extra" / "mined").adding({Direction("eng", "fra"): COUNTS}).save()
    with pytest.raises(CorpusError, match=r"unlike .*mined, has no language 'fra'"):
        _ = corpus.extras


def test_new_languages_go_last_but_english_first():
    corpus = Corpus.empty(None).adding({Direction("deu", "fra"): COUNTS})
    assert corpus.languages == ("deu", "fra")
    corpus = corpus.adding({Direction("ces", "eng_Latn"): COUNTS})
    assert corpus.languages == ("eng_Latn", "deu", "fra", "ces")


@pytest.mark.parametrize("text", ["eng", "eng_Latn-ylt-deu", "eng-", "eng-de u", "eng-eng", "eng/deu", ""])
def test_refuses_what_is_no_direction(text):
    with pytest.raises(CorpusError):
        Direction.parse(text)


def test_a_code_with_a_hyphen_is_told_what_a_code_may_hold():
    with pytest.raises(CorpusError, match=r"'eng_Latn-ylt-deu' is no direction: .* no '-'"):
        Direction.parse("eng_Latn-ylt-deu")


def test_refuses_a_direction_named_twice():
    with pytest.raises(CorpusError, match="eng-deu stands twice in the list of directions"):
        parse_directions("eng-deu, deu-eng,eng-deu")


TABLES = {
    "eng\nde-AT\n": ("eng-deu\t1\t1\t1\n", "'de-AT' is no language code: .*rename the language"),
    "eng\ndeu\neng\n": ("eng-deu\t1\t1\t1\n", "'eng' stands twice in .*languages.txt"),
    "": ("eng-deu\t1\t1\t1\n", "languages.txt is empty"),
    "eng\ndeu\n": ("eng-dou\t1\t1\t1\n", "languages.txt has no language 'dou'; did you mean 'deu'"),
    "eng\ndeu\nfra\n": ("eng-deu\t1\t1\t1\neng-deu\t1\t1\t1\n", "eng-deu stands twice in .*directions.tsv"),
    "eng\ndeu\nces\n": ("eng-deu\t0\t0\t0\n", "direction eng-deu has no data in any split"),
    "eng\ndeu\nkat\n": ("eng-deu\t1\tmany\t1\n", "directions.tsv cannot be read at 'eng-deu 1 many 1'"),
    "eng\ndeu\nheb\n": ("", "directions.tsv is no table of directions"),
}


@pytest.mark.parametrize("languages", TABLES, ids=lambda text: text.replace("\n", " "))
def test_refuses_tables_that_contradict(tmp_path, languages):
    rows, sentence = TABLES[languages]
    (tmp_path / "languages.txt").write_text(languages)
    (tmp_path / "directions.tsv").write_text("direction\ttrain\tvalid\ttest\n" + rows)
    with pytest.raises(CorpusError, match=sentence) as caught:
        Corpus.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_refuses_a_folder_that_is_no_corpus(tmp_path):
    with pytest.raises(CorpusError, match=r"is no corpus, it has no languages.txt"):
        Corpus.open(tmp_path)


def test_refuses_an_unknown_direction(corpus):
    with pytest.raises(CorpusError, match="has no direction 'eng-dou'; did you mean 'eng-deu'"):
        corpus.counts(Direction("eng", "dou"))


def test_refuses_sides_of_different_length(corpus):
    first, second = corpus.sides("raw", "train", ENG_DEU)
    second.write_text("a\nb\nc\n")
    with pytest.raises(CorpusError) as caught:
        corpus.check_text(ENG_DEU)
    assert f"{first} has 2 lines and {second} has 3:" in str(caught.value)


def test_refuses_text_that_is_not_as_counted(corpus):
    for path in corpus.sides("raw", "valid", ENG_DEU):
        path.write_text("a\nb\n")
    with pytest.raises(CorpusError, match=r"has 2 lines where .*directions.tsv says 1"):
        corpus.check_text(ENG_DEU)


def test_refuses_an_empty_file(corpus):
    path = corpus.text("raw", "valid", ENG_DEU, "deu")
    path.write_text("")
    with pytest.raises(CorpusError, match=f"{path} is empty"):
        corpus.check_text(ENG_DEU)


def test_refuses_a_missing_file(corpus):
    path = corpus.text("raw", "valid", ENG_DEU, "deu")
    path.unlink()
    with pytest.raises(CorpusError, match=f"{path} is missing"):
        corpus.check_text(ENG_DEU)


def test_refuses_a_direction_without_files(corpus):
    with pytest.raises(CorpusError, match=r"direction eng-fra has no text, neither .*raw/train.eng-fra.eng and"):
        corpus.adding({Direction("eng", "fra"): COUNTS}).pair(Direction("eng", "fra"))


def test_names_the_line_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin1"
    path.write_bytes("grün\n".encode() + "grün\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=f"{path} line 2 is not UTF-8"):
        list(read_lines(path))


def test_refuses_a_gzip_file_that_was_cut_off(tmp_path):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"a\n" * 10_000)[:-10])
    with pytest.raises(CorpusError, match="is no whole gzip file"):
        list(read_lines(path))


def test_lines_end_at_lf_only(tmp_path):
    lines = ["a\u2028b", "c\rd", "e\x85f", "", "g\x0ch"]
    (tmp_path / "plain").write_bytes("\n".join(lines).encode())
    (tmp_path / "packed.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    assert list(read_lines(tmp_path / "plain")) == lines
    assert list(read_pair(tmp_path / "plain", tmp_path / "packed.gz")) == list(zip(lines, lines, strict=True))


def test_a_file_is_replaced_when_complete_and_not_before(tmp_path):
    path = tmp_path / "folder" / "file"
    with rewriting(path) as (file,):
        file.write("new\n")
        assert not path.exists()
    assert path.read_text() == "new\n"
    with pytest.raises(RuntimeError), drafting(path) as (draft,):
        draft.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_loads_neither_torch_nor_fairseq():
    code = (
        "import sys, moe_nmt.data, moe_nmt.evaluation.cli; print({'torch', 'fairseq', 'sacrebleu'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"
