"""A linear text classifier that anybody can fit in a second and load without a pickle.

    text --> tf-idf (words and word pairs, or characters) --> logistic regression --> probability of the harmful class

Saved as two files: `linear_head.json` (settings, vocabulary, how it was fitted) and `linear_head.safetensors` (idf,
weights, bias). Nothing in them is code, and they do not depend on the scikit-learn version that fitted them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from negalign_ray.errors import ConfigError, DataError
from negalign_ray.rewards.protocol import Pair, TextInput, checked_scores, text_of

# Axes: N = texts, V = entries of the vocabulary.
CARD_FILE, TENSOR_FILE = "linear_head.json", "linear_head.safetensors"
FORMAT_VERSION = 1
Analyzer = Literal["word", "char_wb"]


@dataclass(frozen=True)
class LinearCard:
    """How a linear head was made; stored beside its weights."""

    analyzer: Analyzer  # "word", or "char_wb": characters inside words, sturdier against odd spelling
    ngram_range: tuple[int, int]
    num_harmful: int  # texts it was fitted on
    num_benign: int
    auroc: float | None = None  # out of fold (5-fold cross-validation), not on the texts it was fitted on
    note: str = ""
    text_input: TextInput | None = None  # what it was fitted on; None = made before this was noted


def _vectorizer(
    analyzer: Analyzer,
    ngram_range: tuple[int, int],
    *,
    vocabulary: list[str] | None = None,
    max_features: int | None = None,
) -> TfidfVectorizer:
    return TfidfVectorizer(
        analyzer=analyzer,
        ngram_range=ngram_range,
        vocabulary=vocabulary,
        max_features=max_features,
        sublinear_tf=True,
        strip_accents="unicode",
        dtype=np.float64,
    )


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Probability (0..1) of the harmful class."""

    name: str
    card: LinearCard
    text_input: TextInput
    vectorizer: TfidfVectorizer
    weights_V: np.ndarray  # float64
    bias: float

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """[N] float64."""
        if not texts:
            return np.zeros(0)
        logits_N = self.vectorizer.transform(texts) @ self.weights_V + self.bias
        return np.exp(-np.logaddexp(0.0, -logits_N))  # logistic without overflow

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        texts = [text_of(pair, self.text_input) for pair in pairs]
        return checked_scores(self.name, self.probabilities(texts), expected=len(pairs))

    def save(self, folder: Path | str) -> Path:
        """Write both files; an existing head in `folder` is replaced."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        terms = [str(term) for term in self.vectorizer.get_feature_names_out()]
        card = {"format": FORMAT_VERSION, **asdict(self.card), "terms": terms}
        (folder / CARD_FILE).write_text(json.dumps(card, ensure_ascii=False), encoding="utf-8")
        tensors = {
            "idf": np.asarray(self.vectorizer.idf_, dtype=np.float64),
            "weights": self.weights_V,
            "bias": np.array([self.bias], dtype=np.float64),
        }
        save_file(tensors, folder / TENSOR_FILE)
        return folder

    @classmethod
    def load(cls, folder: Path | str, *, name: str = "judge", text_input: TextInput = "response") -> "LinearHead":
        """Read what `save` wrote; ConfigError says which file is missing or broken, or that it was fitted on texts of
        another kind than `text_input`."""
        folder = Path(folder).expanduser()
        for file in (CARD_FILE, TENSOR_FILE):
            if not (folder / file).is_file():
                raise ConfigError(
                    f"head {name!r}: {folder / file} does not exist; target must be the folder OUT/judge that "
                    "`negalign-ray data judge FILE OUT` makes."
                )
        try:
            card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
            version, terms = card.pop("format"), card.pop("terms")
            tensors = load_file(folder / TENSOR_FILE)
            idf_V, weights_V, bias = tensors["idf"], tensors["weights"], float(tensors["bias"][0])
            made = LinearCard(**{**card, "ngram_range": tuple(card["ngram_range"])})
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ConfigError(
                f"head {name!r}: {folder} is not a readable linear head ({error}); fit it again."
            ) from error
        if version != FORMAT_VERSION or not len(terms) == len(idf_V) == len(weights_V):
            raise ConfigError(
                f"head {name!r}: {folder} has format {version} with {len(terms)} terms, {len(idf_V)} idf values and "
                f"{len(weights_V)} weights; expected format {FORMAT_VERSION} and three equal numbers. Fit it again."
            )
        if made.text_input not in {None, text_input}:
            raise ConfigError(
                f"head {name!r}: input is {text_input!r}, but {folder} was fitted on {made.text_input!r}, and its "
                f"scores of other texts mean nothing; set input={made.text_input} for this head, or fit a judge with "
                f"`negalign-ray data judge --input {text_input}`."
            )
        vectorizer = _vectorizer(made.analyzer, made.ngram_range, vocabulary=terms)
        vectorizer.idf_ = idf_V
        return cls(name=name, card=made, text_input=text_input, vectorizer=vectorizer, weights_V=weights_V, bias=bias)


def auroc(scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray) -> float | None:
    """Probability that a random harmful text outscores a random benign one (ties: half); None with one class."""
    labels = np.asarray(labels, dtype=bool)
    return float(roc_auc_score(labels, np.asarray(scores))) if labels.any() and not labels.all() else None


def fit_linear_head(
    texts: Sequence[str],
    labels: Sequence[bool],
    *,
    name: str = "judge",
    text_input: TextInput = "response",
    analyzer: Analyzer = "word",
    ngram_range: tuple[int, int] = (1, 2),
    max_features: int = 20_000,
    inverse_regularisation: float = 10.0,
    cross_validate: bool = True,
    groups: Sequence[int] | None = None,
    seed: int = 0,
    note: str = "",
) -> LinearHead:
    """Fit on N texts with labels True = harmful; classes are weighted equally, so 0.5 is a neutral threshold.

    `card.auroc` comes from 5 folds (fewer when a class is smaller), vectoriser fitted anew inside each fold. Texts with
    the same number in `groups` (the answers to one prompt, say) stay in one fold. Raises DataError when a class is
    absent or no text holds a word.
    """
    flags_N = np.asarray(labels, dtype=bool)
    if len(flags_N) != len(texts):
        raise DataError(f"fit_linear_head got {len(texts)} texts and {len(flags_N)} labels; give one label per text.")
    num_harmful = int(flags_N.sum())
    num_benign = len(flags_N) - num_harmful
    if not num_harmful or not num_benign:
        raise DataError(f"a linear head needs both classes; got {num_harmful} harmful and {num_benign} benign texts.")
    texts_N = np.asarray(list(texts), dtype=object)

    def fit(rows: np.ndarray) -> tuple[TfidfVectorizer, LogisticRegression]:
        vectorizer = _vectorizer(analyzer, ngram_range, max_features=max_features)
        try:
            features = vectorizer.fit_transform(texts_N[rows])
        except ValueError as error:  # "empty vocabulary"
            raise DataError(f"a linear head cannot be fitted: {error}.") from error
        model = LogisticRegression(C=inverse_regularisation, class_weight="balanced", max_iter=2000, random_state=seed)
        return vectorizer, model.fit(features, flags_N[rows])

    score, num_folds = None, min(5, num_harmful, num_benign)
    if cross_validate and num_folds >= 2:
        out_of_fold_N = np.zeros(len(texts))
        splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
        for train, test in splitter(num_folds, shuffle=True, random_state=seed).split(texts_N, flags_N, groups):
            vectorizer, model = fit(train)
            out_of_fold_N[test] = model.decision_function(vectorizer.transform(texts_N[test]))
        score = auroc(out_of_fold_N, flags_N)
    vectorizer, model = fit(np.arange(len(texts)))
    card = LinearCard(
        analyzer,
        ngram_range,
        num_harmful=num_harmful,
        num_benign=num_benign,
        auroc=score,
        note=note,
        text_input=text_input,
    )
    return LinearHead(
        name=name,
        card=card,
        text_input=text_input,
        vectorizer=vectorizer,
        weights_V=np.ascontiguousarray(model.coef_[0], dtype=np.float64),
        bias=float(model.intercept_[0]),
    )
