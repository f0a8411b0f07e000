"""Which language a line is written in, by py3langid or by a model of fastText."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from moe_nmt.data.codes import alpha2, is_code, nearest
from moe_nmt.data.directions import CorpusError

UNDECIDED = "-"
MAGIC = (793712314).to_bytes(4, "little")  # the first bytes of a model of fastText
MARK = "__label__"  # fastText's, before each language


class LanguageIdentifier:
    """Tells languages of a given set from each other, under the codes of that set.

    Languages that the identifier cannot tell apart, like both scripts of Chinese for most, go by the first of them;
    those that it does not know are never found.
    """

    def __init__(self, classify: Callable[[str], str], labels: Collection[str], languages: Iterable[str]):
        """`classify` says which of `labels` a line is most likely of."""
        self._classify = classify
        self._label = {language: label for language in languages if (label := _label_of(language, labels))}
        self._language = {label: language for language, label in reversed(self._label.items())}

    @classmethod
    def open(cls, model: Path | None, languages: Iterable[str]) -> LanguageIdentifier:
        """py3langid, which knows 97 languages, or with `model` one of fastText, a file like lid218e.bin.

        Raises:
            CorpusError: if the package or the file is missing, or the file cannot be read.
        """
        languages = list(dict.fromkeys(languages))
        return _fasttext(model, languages) if model else _py3langid(languages)

    def knows(self, language: str) -> bool:
        return language in self._label

    def same(self, first: str, second: str) -> bool:
        """Whether two languages are one to the identifier."""
        return self._label.get(first) == self._label.get(second)

    def identify(self, lines: Iterable[str]) -> list[str]:
        """The language of each line, one of those that the identifier knows; `-` for a line without a letter."""
        labels = (self._classify(line) if any(map(str.isalpha, line)) else UNDECIDED for line in lines)
        return [self._language.get(label, UNDECIDED) for label in labels]


def _label_of(language: str, labels: Collection[str]) -> str | None:
    """What an identifier calls the language: the label that means just it, or else the one of its macro-language."""
    if not is_code(language):
        return None
    exact, short = nearest(language, labels), alpha2(language)
    return exact or (short if short in labels else None)


def _py3langid(languages: list[str]) -> LanguageIdentifier:
    try:
        from py3langid import langid
    except ModuleNotFoundError:
        raise CorpusError(
            "language identification needs py3langid, or a model of fastText: pip install 'moe_nmt[langid]'"
        ) from None
    model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    labels = model.labels
    model.set_languages([label for language in languages if (label := _label_of(language, labels))] or None)
    return LanguageIdentifier(lambda line: str(model.classify(line)[0]), labels, languages)


def _fasttext(path: Path, languages: list[str]) -> LanguageIdentifier:
    try:
        import fasttext
    except ModuleNotFoundError:
        raise CorpusError(f"{path} needs fastText: pip install fasttext-predict") from None
    if not path.is_file():
        raise CorpusError(f"{path} is missing: give a model of fastText for language identification, like lid218e.bin")
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:  # fastText itself may crash at other files
            raise CorpusError(
                f"{path} is no model of fastText: fetch one for language identification, like lid218e.bin"
            )
    model = fasttext.load_model(str(path))
    everything, _ = model.predict("a", k=-1)
    labels = [label.removeprefix(MARK) for label in everything]
    wanted = {label for language in languages if (label := _label_of(language, labels))}

    def classify(line: str) -> str:
        ranked = (label.removeprefix(MARK) for label in model.predict(line.replace("\n", " "), k=-1)[0])
        return next((label for label in ranked if label in wanted), UNDECIDED)

    return LanguageIdentifier(classify, labels, languages)
