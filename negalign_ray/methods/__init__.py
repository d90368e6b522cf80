"""The methods: pure losses over groups, one small file each, and what each of them needs.

method_of(config.method).loss(groups, config.method) -> LossOutput
"""

from negalign_ray.config import CustomConfig, DPOConfig, MethodConfig
from negalign_ray.methods import (
    clha,
    d2o,
    dpo,
    ga,
    ipo,
    ld_align,
    neat,
    npo,
    pro,
    rrhf,
    sft,
    simpo,
    slic,
    spin,
    unlikelihood,
)
from negalign_ray.methods.contract import Method, Needs, always
from negalign_ray.methods.custom import load_method

__all__ = ["METHODS", "Method", "Needs", "always", "method_of"]


def _dpo_needs(config: DPOConfig) -> Needs:
    return Needs(
        negatives=True,
        positives=config.winners != "samples",
        samples="unused" if config.winners == "human" else "required",
        references=True,
    )


RANKED = Needs(samples="optional", reward=True)  # every response of the group is a candidate

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("d2o", d2o.loss, always(Needs(negatives=True, samples="required", references=True))),
        Method("neat", neat.loss, always(Needs(samples="required", reward=True, candidates=True))),
        Method("clha", clha.loss, always(RANKED)),
        Method("ld_align", ld_align.loss, always(Needs(positives=True, samples="required", references=True))),
        Method("dpo", dpo.loss, _dpo_needs),
        Method("ipo", ipo.loss, always(Needs(negatives=True, positives=True, references=True))),
        Method("slic", slic.loss, always(Needs(negatives=True, positives=True, references=True))),
        Method("simpo", simpo.loss, always(Needs(negatives=True, positives=True))),
        Method("spin", spin.loss, always(Needs(positives=True, samples="required", references=True))),
        Method("rrhf", rrhf.loss, always(RANKED)),
        Method("pro", pro.loss, always(RANKED)),
        Method("npo", npo.loss, always(Needs(negatives=True, references=True))),
        Method("ga", ga.loss, always(Needs(negatives=True))),
        Method("unlikelihood", unlikelihood.loss, always(Needs(negatives=True, complements=True))),
        Method("sft", sft.loss, always(Needs(positives=True))),
    )
}


def method_of(section: MethodConfig) -> Method:
    """The method of a config section. ConfigError: one of the user's own that cannot be loaded."""
    return load_method(section) if isinstance(section, CustomConfig) else METHODS[section.name]
