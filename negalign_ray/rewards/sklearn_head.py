"""Reward heads made with scikit-learn: the packaged toxicity classifier, or a joblib file that the user vouches for.

The packaged one is `alt-profanity-check`: a calibrated linear SVM over tf-idf of single words, trained on
about 200,000 human-labelled comments, weights inside its wheel. It measures offensive wording. Call its score toxicity:
a polite answer can be unsafe and score 0.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sklearn.exceptions import InconsistentVersionWarning

from negalign_ray.errors import ConfigError
from negalign_ray.rewards.protocol import Pair, TextInput, checked_scores, score_error, text_of

TOXICITY_TARGET = "alt-profanity-check"


def check_joblib_target(target: str, *, head: str, allow_pickle: bool) -> Path:
    """The joblib file, after the checks that need not load it."""
    path = Path(target).expanduser()
    if path.suffix not in {".joblib", ".pkl", ".pickle"}:
        raise ConfigError(
            f"head {head!r}: target={target!r} is neither {TOXICITY_TARGET!r} nor a .joblib file; "
            "name one of the two, or use kind: linear for a folder made by `negalign-ray data judge`."
        )
    if not path.is_file():
        raise ConfigError(f"head {head!r}: the file {path} does not exist; correct target={target!r}.")
    if not allow_pickle:
        raise ConfigError(
            f"head {head!r}: {path} is a pickle, and loading it runs whatever code it holds. Set allow_pickle: true "
            "for this head if you made the file or trust its maker; a head of kind linear needs no pickle."
        )
    return path


def _load_joblib(path: Path, *, head: str) -> Any:
    import joblib

    with warnings.catch_warnings():
        warnings.simplefilter("error", InconsistentVersionWarning)
        try:
            classifier = joblib.load(path)
        except InconsistentVersionWarning as error:
            raise version_error(error, head=head, what=str(path)) from error
        except Exception as error:  # unpickling can raise anything
            raise ConfigError(f"head {head!r}: {path} cannot be loaded ({type(error).__name__}: {error}).") from error
    if not hasattr(classifier, "predict_proba") or not hasattr(classifier, "classes_"):
        raise ConfigError(
            f"head {head!r}: {path} holds a {type(classifier).__name__} without predict_proba; save a fitted Pipeline "
            "that takes a list of texts and ends in a probabilistic classifier."
        )
    return classifier


def version_error(error: InconsistentVersionWarning, *, head: str, what: str) -> ConfigError:
    return ConfigError(
        f"head {head!r}: {what} was written by scikit-learn {error.original_sklearn_version}, this is "
        f"{error.current_sklearn_version}; its scores could silently differ. Install scikit-learn=="
        f"{error.original_sklearn_version}, or fit and save the classifier again (kind: linear does not depend on the "
        "version)."
    )


def check_toxicity_available(*, head: str) -> None:
    """ConfigError unless alt-profanity-check is installed; does not load it."""
    if importlib.util.find_spec("profanity_check") is None:
        raise ConfigError(f"head {head!r}: install the package {TOXICITY_TARGET!r} to use target={TOXICITY_TARGET!r}.")


def _label_column(classes: Sequence[object], label: str | None, *, head: str) -> int:
    names = [str(item) for item in classes]
    if label is None:
        return len(names) - 1
    if label not in names:
        raise ConfigError(f"head {head!r}: label={label!r} is not a class of the classifier; it has {names}.")
    return names.index(label)


@dataclass(frozen=True)
class ToxicityHead:
    """Probability (0..1) that the text is offensive, by alt-profanity-check."""

    name: str
    text_input: TextInput
    predict: Any  # list of N texts -> array of N probabilities

    @classmethod
    def load(cls, name: str, *, text_input: TextInput = "response") -> "ToxicityHead":
        """Import the package (which unpickles the weights of its own wheel) without its warnings."""
        check_toxicity_available(head=name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", InconsistentVersionWarning)
            try:
                package = importlib.import_module("profanity_check")
            except InconsistentVersionWarning as error:
                raise version_error(error, head=name, what=f"the package {TOXICITY_TARGET}") from error
        return cls(name=name, text_input=text_input, predict=package.predict_prob)

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        if not pairs:
            return []  # numpy cannot reduce an empty table
        texts = [text_of(pair, self.text_input) for pair in pairs]
        return checked_scores(self.name, self.predict(texts), expected=len(pairs))


@dataclass(frozen=True)
class SklearnHead:
    """Probability of one class by a fitted scikit-learn pipeline over texts."""

    name: str
    text_input: TextInput
    classifier: Any
    column: int

    @classmethod
    def load(
        cls, name: str, target: str, *, allow_pickle: bool, label: str | None = None, text_input: TextInput = "response"
    ) -> "SklearnHead":
        path = check_joblib_target(target, head=name, allow_pickle=allow_pickle)
        classifier = _load_joblib(path, head=name)
        column = _label_column(list(classifier.classes_), label, head=name)
        return cls(name=name, text_input=text_input, classifier=classifier, column=column)

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        if not pairs:
            return []
        texts = [text_of(pair, self.text_input) for pair in pairs]
        try:
            probabilities = self.classifier.predict_proba(texts)[:, self.column]
        except Exception as error:  # a foreign pipeline may raise anything
            raise score_error(self.name, f"the classifier raised {type(error).__name__}: {error}") from error
        return checked_scores(self.name, probabilities, expected=len(pairs))
