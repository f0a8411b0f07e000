"""How fast cleaning is beside OpusFilter, how much memory it takes, and whether kills change its result.

python scripts/bench_clean.py FOLDER --opusfilter BIN/opusfilter [--json FILE]

FOLDER gets a synthetic corpus (scripts/synthetic_corpus.py). Three parts, in this order:
  whole    collect and clean all of it: seconds, pairs a second, peak memory of the largest process
  killed   clean it again, killed (SIGKILL) in the midst of filtering and of writing: is the result the same?
  peer     the first directions of it, the same filters by OpusFilter, interleaved, with as many processes
OpusFilter is a package of its own: python -m venv ENV; ENV/bin/pip install opusfilter.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from synthetic_corpus import LANGUAGES, write_config, write_corpus

ROOT = Path(__file__).resolve().parents[1]
PEER_FILTERS = (
    "[normalise(form=NFC), length(min_words=1, max_words=250, max_chars=1500), ratio(max=4.0, slack=0), "
    "letters(min=0.4), script(min=0.5), repeated_characters(max=9), leaks, exact_duplicates, near_duplicates]"
)
UNICODE_NAMES = {
    **{"Latn": "Latin", "Cyrl": "Cyrillic", "Grek": "Greek", "Arab": "Arabic"},
    **{"Hebr": "Hebrew", "Deva": "Devanagari", "Armn": "Armenian"},
}


def run(log: Path, *command: object) -> tuple[float, float]:
    """Run a command, its messages into a file; returns its seconds and the peak memory in GB of its largest process."""
    start = time.perf_counter()
    process = start_command(log, *command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed, see {log}")
    return time.perf_counter() - start, usage.ru_maxrss / 1e6


def start_command(log: Path, *command: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHON": sys.executable}
    with open(log, "ab") as messages:
        return subprocess.Popen([str(part) for part in command], env=environment, stdout=messages, stderr=messages)


def step(name: str, *arguments: object) -> list[object]:
    return [ROOT / "data_prep" / f"{name}.sh", *arguments]


def fresh_copy(corpus: Path, name: str) -> Path:
    """A corpus folder with the same collected chunks (hard links) and nothing else."""
    folder = corpus.parent / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(corpus / "collected", folder / "collected", copy_function=os.link)
    return folder


def digest(corpus: Path) -> str:
    """A hash of all that cleaning writes and of the names of the files."""
    found = hashlib.sha256()
    files = [*(corpus / "raw").iterdir(), *corpus.glob("*.t*"), *(corpus / "reports").glob("*.json")]
    for path in sorted(files):
        found.update(str(path.relative_to(corpus)).encode())
        with open(path, "rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def whole(folder: Path, directions: int, pairs: int, workers: int) -> dict[str, object]:
    """Collect and clean everything."""
    corpus = folder / "corpus"
    shutil.rmtree(corpus, ignore_errors=True)
    log = folder / "clean.log"
    collecting, collect_memory = run(log, *step("collect", folder / "corpus.yaml", corpus, "--workers", workers))
    corpus = fresh_copy(corpus, "unbroken")
    cleaning, clean_memory = run(log, *step("clean", corpus, "--workers", workers))
    report = json.loads((corpus / "reports" / "clean.json").read_text())
    total = report["total"]
    accounted = sum(total["dropped_by_collect"].values()) + sum(total["fallen"].values()) + total["kept"]
    return {
        "pairs": directions * pairs,
        "directions": directions,
        "collect": {"seconds": collecting, "peak_gb": collect_memory},
        "clean": {"seconds": cleaning, "peak_gb": clean_memory},
        "pairs_per_second": directions * pairs / (collecting + cleaning),
        "lines": total["lines"],
        "accounted": accounted,
        "kept": total["kept"],
        "digest": digest(corpus),
    }


def killed(folder: Path, workers: int) -> dict[str, object]:
    """Clean again, killed in the midst of filtering and of writing, then to the end."""
    corpus = fresh_copy(folder / "corpus", "killed")
    chunks = len(list((corpus / "collected").rglob("*.parquet")))
    kills = [
        kill_when(corpus, workers, lambda: len(list(corpus.glob("cleaned/*/0/*/*.json"))) >= chunks // 3),
        kill_when(corpus, workers, lambda: len(list(corpus.glob("raw/train.*"))) >= 2),
    ]
    seconds, memory = run(folder / "clean.log", *step("clean", corpus, "--workers", workers))
    return {"killed_after": kills, "last_run_seconds": seconds, "peak_gb": memory, "digest": digest(corpus)}


def kill_when(corpus: Path, workers: int, ready: Callable[[], bool]) -> float:
    start = time.perf_counter()
    process = start_command(corpus.with_suffix(".log"), *step("clean", corpus, "--workers", workers))
    while not ready():
        if process.poll() is not None:
            raise SystemExit("cleaning ended before it could be killed")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return time.perf_counter() - start


def peer(folder: Path, opusfilter: Path, directions: int, pairs: int, workers: int, rounds: int) -> dict[str, object]:
    """Both tools on the first directions, from the text files to clean text files."""
    few = folder / "few"
    shutil.rmtree(few, ignore_errors=True)
    few.mkdir()
    for language in LANGUAGES[:directions]:
        for path in folder.glob(f"t*.eng_Latn-{language}.*"):
            os.link(path, few / path.name)
    write_config(few, directions)
    configure(few, directions, workers)
    seconds: dict[str, list[float]] = {"moe_nmt": [], "opusfilter": []}
    peaks: dict[str, float] = {}
    kept = {}
    for number in range(rounds):
        for name in sorted(seconds, reverse=bool(number % 2)):
            shutil.rmtree(few / name, ignore_errors=True)
            if name == "opusfilter":
                (few / name).mkdir()
                took, peak = run(few / "opusfilter.log", opusfilter, few / "opusfilter.yaml")
            else:
                parts = [
                    run(few / "clean.log", *step("collect", few / "corpus.yaml", few / name, "--workers", workers)),
                    run(few / "clean.log", *step("clean", few / name, "--filters", PEER_FILTERS, "--workers", workers)),
                ]
                took, peak = sum(part[0] for part in parts), max(part[1] for part in parts)
            seconds[name].append(took)
            peaks[name] = max(peak, peaks.get(name, 0))
            print(f"peer: round {number + 1} of {rounds}, {name}: {took:.1f} s", file=sys.stderr)
    for name, pattern in (("moe_nmt", "raw/train.*.eng_Latn"), ("opusfilter", "final.*.eng_Latn")):
        kept[name] = sum(path.read_bytes().count(b"\n") for path in (few / name).glob(pattern))
    ratios = [theirs / ours for ours, theirs in zip(seconds["moe_nmt"], seconds["opusfilter"], strict=True)]
    return {
        "pairs": directions * pairs,
        "processes": workers,
        "seconds": seconds,
        "pairs_per_second": {name: directions * pairs / statistics.median(took) for name, took in seconds.items()},
        "peak_gb": peaks,
        "kept": kept,
        "times_as_fast": statistics.median(ratios),
        "ratios": ratios,
    }


def configure(folder: Path, directions: int, workers: int) -> None:
    """The same filters for OpusFilter: FOLDER/opusfilter.yaml (JSON is YAML)."""
    steps = [step for language in LANGUAGES[:directions] for step in opusfilter_steps(folder, language)]
    common = {"output_directory": str(folder / "opusfilter"), "default_n_jobs": workers}
    (folder / "opusfilter.yaml").write_text(json.dumps({"common": common, "steps": steps}), encoding="utf-8")


def opusfilter_steps(folder: Path, language: str) -> Iterator[dict[str, object]]:
    codes = ("eng_Latn", language)

    def files(stage: str) -> list[str]:
        return [f"{stage}.{language}.{code}" for code in codes]

    def text(split: str) -> list[str]:
        return [str(folder / f"{split}.eng_Latn-{language}.{code}") for code in codes]

    scripts = [UNICODE_NAMES[code[-4:]] for code in codes]
    yield {
        "type": "preprocess",
        "parameters": {
            "inputs": text("train"),
            "outputs": files("spaces"),
            "preprocessors": [{"WhitespaceNormalizer": {}}],
        },
    }
    filters = [
        {"LengthFilter": {"unit": "word", "min_length": 1, "max_length": 250}},
        {"LengthFilter": {"unit": "char", "min_length": 1, "max_length": 1500}},
        {"LengthRatioFilter": {"unit": "char", "threshold": 4}},
        {"AlphabetRatioFilter": {"threshold": 0.4, "exclude_whitespace": True}},
        {"CharacterScoreFilter": {"scripts": scripts, "thresholds": [0.5, 0.5]}},
        {"RepetitionFilter": {"threshold": 9, "min_length": 1, "max_length": 1}},
    ]
    yield {"type": "filter", "parameters": {"inputs": files("spaces"), "outputs": files("good"), "filters": filters}}
    alike = {"lowercase": True, "letters_only": True}
    stages = ["good", "unseen0", "unseen1", "once", "final"]
    options = [
        {"compare": [0], "overlap": text("test"), **alike},
        {"compare": [1], "overlap": text("test"), **alike},
        {},
        alike,
    ]
    for before, after, option in zip(stages[:-1], stages[1:], options, strict=True):
        yield {"type": "remove_duplicates", "parameters": {"inputs": files(before), "outputs": files(after), **option}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--directions", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=250_000, help="training pairs of each direction (default: 250000)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: as many as cores)")
    parser.add_argument("--opusfilter", type=Path, help="the command opusfilter of an environment of its own")
    parser.add_argument("--peer-directions", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not (args.folder / "corpus.yaml").is_file():
        print("writing the synthetic corpus", file=sys.stderr)
        write_corpus(args.folder, args.directions, args.pairs, args.workers)
    results: dict[str, object] = {"whole": whole(args.folder, args.directions, args.pairs, args.workers)}
    results["killed"] = killed(args.folder, args.workers)
    results["same_result_after_two_kills"] = results["whole"]["digest"] == results["killed"]["digest"]
    if args.opusfilter:
        results["peer"] = peer(
            args.folder, args.opusfilter, args.peer_directions, args.pairs, args.workers, args.rounds
        )
    text = json.dumps(results, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
