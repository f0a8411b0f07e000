"""At which update a direction joins the training, computed and read from files."""

import pytest

from moe_nmt.__main__ import main
from moe_nmt.data import Corpus, Direction
from moe_nmt.errors import UserError
from moe_nmt.training.curriculum import Curriculum, best_step, cut_evenly, from_best_steps, from_sizes

A, B, C, D, E, F = (Direction("eng", code) for code in ("aaa", "bbb", "ccc", "ddd", "eee", "fff"))


def test_step_based_as_in_the_paper():
    made = from_best_steps({A: 15_000, B: 20_000, C: 90_000}, 100_000, lengths=[100_000, 40_000, 20_000])
    assert made.active(0) == made.active(79_999) == [C]
    assert sorted(made.active(80_000)) == sorted(made.active(10**9)) == [A, B, C]
    assert (made.phase(0), made.phase(79_999), made.phase(80_000)) == (1, 1, 2)
    assert (made.next_start(0), made.next_start(79_999), made.next_start(80_000)) == (80_000, 80_000, None)


def test_a_direction_goes_to_the_nearest_length_and_at_a_tie_to_the_shorter():
    made = from_best_steps({A: 29, B: 30, C: 31, D: 70, E: 71}, 100, lengths=[100, 40, 20])
    assert made.start == {A: 80, B: 80, C: 60, D: 60, E: 0}


def test_lengths_are_medians_and_those_that_never_overfit_start():
    best = {A: 100, B: 100, C: 100, D: 50, E: 40, F: 10}
    made = from_best_steps(best, 100, phases=3)
    assert made.start == {A: 0, B: 0, C: 0, D: 55, E: 55, F: 90}
    assert [(phase.start, phase.new, len(phase.active)) for phase in made.phases] == [
        (0, [A, B, C], 3),
        (55, [D, E], 5),
        (90, [F], 6),
    ]


def test_where_all_overfit_the_latest_start():
    assert from_best_steps({A: 10, B: 20, C: 90}, 100, phases=3).start == {A: 90, B: 80, C: 0}
    assert from_best_steps({A: 10, B: 20}, 100, lengths=[100, 40, 20]).start == {A: 0, B: 0}


def test_cut_into_parts_of_equal_numbers_that_never_part_equals():
    assert cut_evenly({A: 1, B: 2, C: 3, D: 4, E: 5, F: 6}, 3) == [[E, F], [C, D], [A, B]]
    assert cut_evenly({A: 1, B: 5, C: 5, D: 5}, 2) == [[B, C, D], [A]]
    assert cut_evenly({A: 5, B: 5, C: 5}, 3) == [[A, B, C], [], []]


def test_of_equal_perplexities_the_later_step_is_best():
    assert best_step([100, 200, 300, 400], [9.0, 5.0, 5.0, 6.0]) == 300


def test_count_based():
    sizes = {A: 500, B: 1_000, C: 6_000}
    assert from_sizes(sizes, 100).start == {A: 80, B: 60, C: 0}
    assert from_sizes(sizes, 100, phases=4).start == {A: 80, B: 60, C: 0}
    assert from_sizes(sizes, 100, thresholds=[1_000]).start == {A: 60, B: 0, C: 0}
    assert from_sizes(sizes, 100, lengths=[100, 30], thresholds=[1_001]).start == {A: 70, B: 70, C: 0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"phases": 1}, "2 phases or more"),
        ({"phases": 2, "lengths": [100, 40, 20]}, "3 phases"),
        ({"lengths": [90, 40]}, "100"),
        ({"lengths": [100, 40, 40]}, "fall"),
        ({"lengths": [100, 0]}, "fall"),
        ({"phases": 3, "thresholds": [10]}, "2 falling sizes"),
        ({"phases": 3, "thresholds": [10, 20]}, "falling"),
    ],
)
def test_phases_lengths_and_thresholds_must_agree(options, words):
    with pytest.raises(UserError, match=words):
        from_sizes({A: 5, B: 50}, 100, **options)


def test_a_file_says_what_was_written(tmp_path):
    made = Curriculum({A: 7, B: 0, C: 7})
    made.write(tmp_path / "curriculum.tsv")
    assert (tmp_path / "curriculum.tsv").read_text() == "direction\tstart\neng-bbb\t0\neng-aaa\t7\neng-ccc\t7\n"
    assert Curriculum.read(tmp_path / "curriculum.tsv").start == made.start


def test_a_file_by_hand_may_have_spaces_and_empty_lines(tmp_path):
    (tmp_path / "by_hand").write_bytes(b"direction start\r\n\r\neng-aaa   0\r\n")
    assert Curriculum.read(tmp_path / "by_hand").start == {A: 0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1.*header"),
        ("eng-aaa\t0\n", "line 1.*header"),
        ("direction\tstart\neng-aaa\t0\nengaaa\t1\n", "line 3.*engaaa"),
        ("direction\tstart\neng-aaa\t0\neng-bbb\n", "line 3.*whole number"),
        ("direction\tstart\neng-aaa\t0\neng-bbb\t-1\n", "line 3.*whole number"),
        ("direction\tstart\neng-aaa\t0\neng-bbb\t1e3\n", "line 3.*whole number"),
        ("direction\tstart\neng-aaa\t0\neng-bbb\t1\neng-aaa\t2\n", "line 4.*eng-aaa"),
        ("direction\tstart\neng-aaa\t5\n", "starts at 0"),
        ("direction\tstart\n", "starts at 0"),
    ],
)
def test_mistakes_in_a_file_are_named_with_their_line(tmp_path, text, words):
    (tmp_path / "bad.tsv").write_text(text)
    with pytest.raises(UserError, match=f"bad.tsv.*{words}"):
        Curriculum.read(tmp_path / "bad.tsv")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*does not exist"):
        Curriculum.read(tmp_path / "nowhere")


def write_events(folder, curves):
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(folder)
    for name, values in curves.items():
        for step, value in values.items():
            writer.add_scalar(name, value, step)
    writer.close()


def test_command_from_run(tmp_path, capsys):
    curves = {
        "ppl": {10: 9.0, 20: 8.0, 30: 9.5},
        "ppl_eng-aaa": {10: 4.0, 20: 5.0, 30: 6.0},
        "ppl_eng-bbb": {10: 4.0, 20: 4.0, 30: 6.0},
        "ppl_eng-ccc": {10: 4.0, 20: 3.0, 30: 2.0},
        "nll_loss_eng-ccc": {10: 2.0, 20: 2.0, 30: 3.0},
    }
    write_events(tmp_path / "run/tensorboard/valid", curves)
    write_events(tmp_path / "run/tensorboard/train_inner", {"loss": {10: 1.0, 35: 1.0}})
    output = tmp_path / "curriculum.tsv"
    assert main(["curriculum", "from-run", str(tmp_path / "run"), "--output", str(output)]) == 0
    assert Curriculum.read(output).start == {C: 0, B: 15, A: 25}
    first, second, third = capsys.readouterr().out.splitlines()[1:]
    assert first.split() == ["1", "0", "35", "35", "+", "1", "=", "1:", "eng-ccc"]
    assert second.split() == ["2", "15", "20", "20", "+", "1", "=", "2:", "eng-bbb"]
    assert third.split() == ["3", "25", "10", "10", "+", "1", "=", "3:", "eng-aaa"]
    lengths = ["--lengths", "100,40,20"]
    assert main(["curriculum", "from-run", str(tmp_path / "run"), "--output", str(output), *lengths]) == 0
    assert Curriculum.read(output).start == {C: 0, A: 80, B: 80}


def test_command_from_run_without_curves_of_directions(tmp_path, capsys):
    write_events(tmp_path / "run/valid", {"ppl": {10: 9.0}})
    assert main(["curriculum", "from-run", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 2
    assert "no validation perplexity of single directions" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_command_from_sizes(tmp_path, capsys):
    counts = {A: 500, B: 1_500, C: 6_000}
    rows = {direction: {"train": train, "valid": 1, "test": 1} for direction, train in counts.items()}
    Corpus.empty(tmp_path).adding(rows).save()
    command = ["curriculum", "from-sizes", str(tmp_path / "directions.tsv"), "--output", str(tmp_path / "made.tsv")]
    assert main([*command, "--max-update", "1000"]) == 0
    assert Curriculum.read(tmp_path / "made.tsv").start == {C: 0, B: 600, A: 800}
    assert "6000" in capsys.readouterr().out
    assert main(command) == 2
    assert "--max-update" in capsys.readouterr().err
