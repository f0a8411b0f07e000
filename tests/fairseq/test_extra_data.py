"""Training on shards, and on mined and back-translated data beside the main data, through fairseq's own commands."""

import json
import shutil

import pytest
import torch
from fairseq import options, tasks

from moe_nmt.data import Corpus, Direction
from moe_nmt.data.text import write_text
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.data_folders import named_texts
from tests.fairseq.conftest import ROOT, SmallCorpus, must_run, run
from tests.fairseq.test_bad_input import refuse
from tests.fairseq.test_resume import assert_equal, final_state, train_until

KINDS = ("back_translated", "mined")
SMALL = ("--disable-validation", "--no-epoch-checkpoints")


@pytest.fixture(scope="module")
def extended(corpus, tmp_path_factory) -> SmallCorpus:
    """The small corpus in shards, with mined data for Greek, and back-translations from French and from a language
    pair that the main data do not have."""
    folder = tmp_path_factory.mktemp("extended") / "corpus"
    shutil.copytree(corpus.folder, folder, ignore=shutil.ignore_patterns("data-bin", "encoded", ".stamps"))
    main = Corpus.open(folder)
    directions = dict(main.directions) | {Direction("deu", "fra"): {"train": 0, "valid": 20, "test": 20}}
    main.adding(directions).save()
    for split in ("valid", "test"):
        for language in ("deu", "fra"):
            text = main.text("raw", split, Direction("eng", language), language).read_text()
            write_text(main.text("raw", split, Direction("deu", "fra"), language), text)
    both_ways = add_extra(folder, "mined", main, [Direction("eng", "ell")], lines=121)
    one_way = add_extra(folder, "back_translated", main, [Direction("fra", "eng"), Direction("deu", "fra")], lines=50)
    both_ways.adding({d.reverse: n for d, n in both_ways.directions.items()}).save()
    one_way.save()
    flags = ("--vocab-size", "400", "--workers", "1", "--shard-pairs", "100", "--sampling-temperature", "2")
    must_run(["bash", ROOT / "data_prep/prepare.sh", folder, *flags])
    return SmallCorpus(folder)


def add_extra(folder, kind, main, directions, lines):
    """A sub-corpus of the first training lines of the languages, which need not be translations."""
    extra = Corpus.empty(folder / "extra" / kind)
    for direction in directions:
        for language in (direction.source, direction.target):
            pair = Direction("eng", "ell" if language == "eng" else language)
            text = main.text("raw", "train", pair, language).read_text().splitlines(keepends=True)
            write_text(extra.text("raw", "train", direction, language), "".join(text[:lines]))
    return extra.adding({direction: {"train": lines, "valid": 0, "test": 0} for direction in directions})


def flags_of(corpus) -> list[str]:
    return (corpus.folder / "flags.txt").read_text().split()


def train_command(corpus, save_dir, updates, *flags):
    """Training with the flags that came with the corpus alone."""
    command = corpus.train_command(save_dir, updates, *SMALL, *flags)
    place = command.index("--task")
    del command[place : command.index("--num-workers")]
    return [*command[:place], *flags_of(corpus), *command[place:]]


def task_of(corpus, *flags):
    """The task of a training, in this process."""
    parser = options.get_training_parser(default_task="multilingual_translation_moe")
    model = ("--arch", "transformer_moe_tiny", "--criterion", "moe_label_smoothed_cross_entropy")
    args = options.parse_args_and_arch(parser, [str(corpus.data), *flags_of(corpus), *model, *map(str, flags)])
    return tasks.setup_task(args)


@pytest.fixture(scope="module")
def task(extended):
    task = task_of(extended)
    task.load_dataset("train", epoch=1)
    return task


def parts(task):
    """The datasets by fairseq's keys."""
    return dict(zip(task.datasets["train"].keys, task.datasets["train"].datasets, strict=True))


def test_every_kind_serves_its_directions_alone(task):
    expected = ["deu-eng", "ell-eng", "eng-deu", "eng-ell", "eng-fra", "fra-eng"]
    assert sorted(key.split(":")[1] for key in parts(task) if key.startswith("main:")) == expected
    assert {key for key in parts(task) if not key.startswith("main:")} == {
        *("mined:eng-ell", "mined:ell-eng"),
        *("back_translated:fra-eng", "back_translated:deu-fra"),
    }


def test_tags_stand_after_the_language_tag_of_extra_sources_and_nowhere_else(extended, task):
    dictionary = task.source_dictionary
    tags = {kind: dictionary.index(f"<{kind}>") for kind in KINDS}
    assert dictionary.unk() not in tags.values()
    for key, dataset in parts(task).items():
        kind, direction = key.split(":")
        source, target = direction.split("-")
        begin = [dictionary.index(f"__{source}__"), *([tags[kind]] if kind in tags else [])]
        folder = extended.folder / ("" if kind == "main" else f"extra/{kind}")
        pair = direction if (folder / "encoded" / f"train.{direction}.{source}").is_file() else f"{target}-{source}"
        lines = (folder / "encoded" / f"train.{pair}.{source}").read_text().splitlines()
        for number in range(len(dataset)):
            item = dataset[number]
            tokens = item["source"].tolist()
            assert tokens[: len(begin)] == begin
            assert [len(tokens), len(item["target"])] == dataset.sizes[number].tolist()
            assert not set(tags.values()) & {*tokens[len(begin) :], *item["target"].tolist()}
        text = [dictionary.string(dataset[number]["source"][len(begin) :]) for number in range(3)]
        assert text == lines[:: max(1, -(-len(lines) // 100))][:3]


def test_a_batch_mixes_kinds(task):
    keys = [parts(task)[key] for key in ("main:eng-deu", "mined:eng-ell", "back_translated:deu-fra")]
    batch = keys[0].collater([dataset[number] for dataset in keys for number in (0, 1)])
    names = [task.langs[number] for number in batch["net_input"]["source_language"].tolist()]
    tagged = (batch["net_input"]["src_tokens"] == task.source_dictionary.index("<back_translated>")).any(1).tolist()
    assert sorted(names) == ["deu", "deu", *["eng"] * 4]
    assert [name == "deu" for name in names] == tagged


def test_held_out_data_have_no_tags(task):
    task.load_dataset("valid")
    dataset, index = task.dataset("valid"), task.source_dictionary.index
    tags = {index(f"<{kind}>") for kind in KINDS}
    assert len(dataset) == 20 * len(task.lang_pairs) == 20 * 7
    assert not any(tags & set(dataset[number]["source"].tolist()) for number in range(len(dataset)))


def test_sampling_sees_kinds_apart_and_all_shards(extended, task):
    report = json.loads((extended.folder / "reports/sampling.json").read_text())["entries"]
    ratios = dict(zip(task.datasets["train"].keys, task.datasets["train"].sample_ratios, strict=True))
    for key, ratio in ratios.items():
        assert ratio / sum(ratios.values()) == pytest.approx(report[key]["shares"]["T=2"], abs=1e-6), key


def test_epochs_go_through_the_shards(extended):
    task = task_of(extended)
    seen = {}
    for epoch in (1, 2, 3, 4):
        task.load_dataset("train", epoch=epoch)
        seen[epoch] = {key: [d[n]["source"].tolist() for n in range(len(d))] for key, d in parts(task).items()}
    assert seen[1]["main:eng-deu"] != seen[2]["main:eng-deu"] and seen[1]["mined:eng-ell"] != seen[2]["mined:eng-ell"]
    assert seen[1]["main:eng-ell"] == seen[3]["main:eng-ell"] and seen[1]["mined:eng-ell"] == seen[3]["mined:eng-ell"]
    assert seen[1]["back_translated:deu-fra"] == seen[2]["back_translated:deu-fra"]


def test_trains_translates_and_reports_with_nothing_but_the_flags(extended, tmp_path):
    log = must_run(train_command(extended, tmp_path, 12, "--log-interval", "6")).stdout
    assert "nll_loss_deu-fra=" in log or '"nll_loss_deu-fra"' in log
    checkpoint = tmp_path / "checkpoint_last.pt"
    must_run(["moe-nmt", "translate", checkpoint, extended.data, "--output", tmp_path / "hyp", "--cpu", "--beam", "1"])
    assert {path.stem for path in (tmp_path / "hyp").glob("*.hyp")} == set(extended.pairs)
    routing = must_run(["moe-nmt", "routing", checkpoint, extended.data, "--json", tmp_path / "routing.json"])
    assert routing.returncode == 0


def test_directions_that_are_not_trained_are_left_out_of_extra_data(extended, caplog):
    with caplog.at_level("INFO"):
        task = task_of(extended, "--lang-pairs", "eng-ell,ell-eng")
    assert "extra data back_translated: not in --lang-pairs and left out: fra-eng, deu-fra" in caplog.text
    assert task.args.extra_lang_pairs == {"mined": "eng-ell,ell-eng"}


def test_a_run_that_was_killed_goes_on_in_its_shard(extended, tmp_path):
    flags = ("--virtual-epoch-size", "130", "--virtual-data-size", "400")
    flags = (*flags, "--save-interval-updates", "45", "--save-interval", "1000")
    killed = train_command(extended, tmp_path / "killed", 70, *flags)
    train_until(killed, 50)
    state = torch.load(tmp_path / "killed/checkpoint_last.pt")["extra_state"]["train_iterator"]
    assert state["epoch"] > 1 and state["iterations_in_epoch"] > 0
    assert "@ 45 updates" in must_run(killed).stdout
    must_run(train_command(extended, tmp_path / "unbroken", 70, *flags))
    assert_equal(final_state(tmp_path / "killed"), final_state(tmp_path / "unbroken"))


def test_mistakes_are_one_sentence(extended, tmp_path):
    mined = extended.folder / "extra/mined/data-bin"

    def extra(data, pairs):
        return "--extra-data", json.dumps(data), "--extra-lang-pairs", json.dumps(pairs)

    for flags, words in (
        (extra({"web": str(mined)}, {"web": "eng-ell"}), "no tag <web>"),
        (extra({"mined": str(mined)}, {"mine": "eng-ell"}), "did you mean 'mined'"),
        (extra({"mined": "nowhere"}, {"mined": "eng-ell"}), "does not exist"),
        (extra({"mined": str(mined)}, {"mined": "eng-fra"}), "no train data"),
        (extra({"mono_x": str(mined)}, {"mono_x": "eng-ell"}), "rename it"),
        (extra({"mined": str(mined)}, {}), "no directions for 'mined'"),
        (("--virtual-epoch-size", "100"), "needs --virtual-data-size"),
    ):
        with pytest.raises(UserError, match=words):
            task_of(extended, *flags)
    refuse(run(train_command(extended, tmp_path, 1, "--virtual-epoch-size", "100")), "--virtual-data-size")


def test_a_dictionary_that_lost_its_quotes_is_refused(extended, tmp_path):
    done = run(train_command(extended, tmp_path, 1, "--extra-data", "{mined:x}"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--extra-data: {mined:x} is no dictionary of texts" in done.stderr
    assert named_texts("{'mined': 'x'}") == {"mined": "x"}
