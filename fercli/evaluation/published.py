"""Published accuracies with source RAF-DB, for comparison with fercli's. Each row cites the paper that prints it.

All are oracle-selected in the released code (best epoch by target-test accuracy), so they compare with oracle rows.
"""

from __future__ import annotations

from typing import Any

from fercli.spec import Spec

_TARGETS = ("ck+", "jaffe", "sfew", "fer2013", "expw")
_AGRA = "Chen et al., TPAMI 2022"
_DIFC = "DIFC, ECCV Workshops 2022"
_NAMES = {"ir50": "IR-50", "ir18": "IR-18", "mobilenet-v2": "MobileNetV2", "mobilenet-v2-wide": "MobileNetV2"}
_ROWS: tuple[tuple[str, str, str, tuple[float | None, ...]], ...] = (
    ("ICID", "IR-50", _AGRA, (74.42, 50.70, 48.85, 53.70, 69.54)),
    ("DFA", "IR-50", _AGRA, (64.26, 44.44, 43.07, 45.79, 56.86)),
    ("LPL", "IR-50", _AGRA, (74.42, 53.05, 48.85, 55.89, 66.90)),
    ("DETN", "IR-50", _AGRA, (78.22, 55.89, 49.40, 52.29, 47.58)),
    ("FTDNN", "IR-50", _AGRA, (79.07, 52.11, 47.48, 55.98, 67.72)),
    ("ECAN", "IR-50", _AGRA, (79.77, 57.28, 52.29, 56.46, 47.37)),
    ("CADA", "IR-50", _AGRA, (72.09, 52.11, 53.44, 57.61, 63.15)),
    ("SAFN", "IR-50", _AGRA, (75.97, 61.03, 52.98, 55.64, 64.91)),
    ("SWD", "IR-50", _AGRA, (75.19, 54.93, 52.06, 55.84, 68.35)),
    ("AGRA", "IR-50", _AGRA, (85.27, 61.50, 56.43, 58.95, 68.50)),
    ("AGRA", "IR-18", _AGRA, (77.52, 61.03, 52.75, 54.94, 69.70)),
    ("AGRA", "MobileNetV2", _AGRA, (72.87, 55.40, 45.64, 51.05, 63.94)),
    ("MCD + CE", "IR-50", _DIFC, (None, 64.79, 53.73, 55.80, 69.10)),
    ("MCD + DIFC", "IR-50", _DIFC, (None, 68.54, 56.87, 58.06, 71.20)),
)


def published_rows(spec: Spec, targets: list[str], synthetic: bool) -> list[dict[str, Any]]:
    """Rows for these targets and the spec's backbone, with accuracy in %.

    Empty unless ``evaluate.published`` is set and the only source is ``raf-db``. Empty with synthetic faces.
    """
    if not spec.evaluate.published or synthetic or spec.data.source != ["raf-db"]:
        return []
    return [
        {
            "method": method,
            "backbone": net,
            "target": target,
            "accuracy": accuracy,
            "citation": cited,
            "selection": "oracle",
        }
        for method, net, cited, figures in _ROWS
        for target, accuracy in zip(_TARGETS, figures, strict=True)
        if net == _NAMES.get(spec.model.backbone) and target in targets and accuracy is not None
    ]
