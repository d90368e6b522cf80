"""From a `HeadConfig` to a reward head, and the cheap check that it can be built, made before anything is started.

| kind | target | score |
|---|---|---|
| reward_model | folder of `negalign-ray train-reward` | raw logit of its head `label`, or calibrated probability |
| hf_classifier | model folder or hub name | probability of `label` |
| sklearn | `alt-profanity-check` (toxicity), or a joblib file with `allow_pickle` | probability of `label` |
| linear | folder of `negalign-ray data judge`, or "quickstart-judge" (packaged) | probability of harm |
| python | `module:function`, list of (prompt, response) -> list of numbers | as returned |
| http | URL, see `http_head.py` | as returned |
"""

from pathlib import Path

from negalign_ray.config import HeadConfig
from negalign_ray.rewards.http_head import HTTPHead
from negalign_ray.rewards.protocol import RewardHead
from negalign_ray.rewards.python_head import PythonHead, import_function
from negalign_ray.rewards.reward_card import check_reward_model

QUICKSTART_TARGET = "quickstart-judge"  # kind linear: the judge that ships with the package
QUICKSTART_FOLDER = Path(__file__).parent / "quickstart_judge"  # written by scripts/fit_quickstart_judge.py


def _linear_folder(target: str) -> Path:
    return QUICKSTART_FOLDER if target == QUICKSTART_TARGET else Path(target)


def build_head(config: HeadConfig, *, device: str = "cpu") -> RewardHead:
    """Load the head. Raises ConfigError (bad target) or ModelError (a model that cannot be loaded)."""
    name, target = config.name, config.target
    match config.kind:
        case "reward_model":
            from negalign_ray.rewards.reward_model import RewardModelHead

            return RewardModelHead.load(
                name,
                target,
                label=config.label,
                output=config.output,
                batch_size=config.batch_size,
                device=device,
            )
        case "hf_classifier":
            from negalign_ray.rewards.hf_classifier import HFClassifierHead

            return HFClassifierHead.load(
                name,
                target,
                label=config.label,
                text_input=config.input,
                batch_size=config.batch_size,
                device=device,
            )
        case "sklearn":
            from negalign_ray.rewards.sklearn_head import TOXICITY_TARGET, SklearnHead, ToxicityHead

            if target == TOXICITY_TARGET:
                return ToxicityHead.load(name, text_input=config.input)
            return SklearnHead.load(
                name, target, allow_pickle=config.allow_pickle, label=config.label, text_input=config.input
            )
        case "linear":
            from negalign_ray.rewards.linear import LinearHead

            return LinearHead.load(_linear_folder(target), name=name, text_input=config.input)
        case "python":
            return PythonHead(name=name, function=import_function(target, head=name))
        case "http":
            return HTTPHead.load(
                name,
                target,
                batch_size=config.batch_size,
                deadline_s=config.deadline_s,
                max_retries=config.max_retries,
                token_env=config.token_env,
            )


def check_head(config: HeadConfig) -> None:
    """ConfigError unless the target resolves. Loads no model, contacts no server; imports a `python` module."""
    name, target = config.name, config.target
    match config.kind:
        case "reward_model":
            check_reward_model(target, label=config.label, direction=config.direction, head=name)
        case "hf_classifier":
            from negalign_ray.rewards.hf_classifier import check_classifier

            check_classifier(target, config.label, head=name)
        case "sklearn":
            from negalign_ray.rewards.sklearn_head import TOXICITY_TARGET, check_joblib_target, check_toxicity_available

            if target == TOXICITY_TARGET:
                check_toxicity_available(head=name)
            else:
                check_joblib_target(target, head=name, allow_pickle=config.allow_pickle)
        case _:  # two small files, a module to import, or a URL: building the head is the check
            build_head(config)
