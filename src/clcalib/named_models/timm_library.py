"""Networks of timm, with its data configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from clcalib.errors import ArgumentError
from clcalib.named_models.library import ENTRY, WEIGHTS, OwnTransform, from_steps, missing, refuse, said

_LOADING = ("pretrained", "checkpoint_path", "cache_dir")


class Timm:
    """Names such as ``resnet50``, or ``resnet50.a1_in1k`` to say which of several published weights is meant."""

    def names(self) -> list[str]:
        """Of all networks, without names of weights."""
        names: list[str] = _timm().list_models()
        return names

    def knows(self, name: str) -> bool:
        """Whether there is such a network and, where a name of weights follows, such weights."""
        timm = _timm()
        if not timm.is_model(name):
            return False
        name, _, tag = name.partition(".")
        return not tag or tag in self.published(name)

    def published(self, name: str) -> list[str]:
        """The tags of its weights."""
        return [each.partition(".")[2] for each in _timm().list_pretrained(f"{name}.*")]

    def build(self, name: str, arguments: Mapping[str, Any], *, is_pretrained: bool) -> nn.Module:
        """Build it; where weights are asked for, timm brings and reads them (tensors only)."""
        refuse(arguments, _LOADING)
        expected = f"timm to build {name}"
        try:
            model = _timm().create_model(name, pretrained=is_pretrained, **arguments)
        except Exception as error:  # whatever timm and the hub raise
            if is_pretrained:
                remedy = "without the hub, bring the file of the weights from another machine: --weights FILE"
                raise ArgumentError(WEIGHTS, f"the published weights of timm:{name}", said(error), remedy) from error
            raise ArgumentError(ENTRY, expected, said(error)) from error
        assert isinstance(model, nn.Module)
        return model

    def transform(self, name: str, arguments: Mapping[str, Any], file: str | None) -> OwnTransform:
        """That of timm's data configuration, for evaluation."""
        timm = _timm()
        overlay = arguments.get("pretrained_cfg_overlay")
        known = timm.get_pretrained_cfg(name)
        own = {**({} if known is None else known.to_dict()), **(overlay if isinstance(overlay, Mapping) else {})}
        sizes = {key: arguments[key] for key in ("img_size", "in_chans") if isinstance(arguments.get(key), int)}
        try:
            config = timm.data.resolve_data_config(sizes, pretrained_cfg=own)
            # Without a configuration of its own a network gets timm's defaults.
            steps = timm.data.create_transform(**config, is_training=False).transforms
        except Exception as error:  # of an overlay that means nothing
            return OwnTransform(None, f"not to be told ({said(error)})")
        return OwnTransform(from_steps(steps), ", ".join(f"{key} {value}" for key, value in config.items()))


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except Exception as error:  # a library that does not fit this torch raises all kinds
        raise missing("timm", error) from error
    return timm
