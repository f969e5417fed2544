"""What ``load`` hands back, and the patterns of what it leaves alone."""

from __future__ import annotations

import pytest

from theano_mgpu.weights import LoadReport, matching


def test_a_report_prints_counts_and_a_few_names():
    names = tuple(f"layer{i}" for i in range(9))
    assert str(LoadReport(names, ignored=("bn.num_batches_tracked",))).splitlines() == [
        "loaded     9  layer0, layer1, layer2, ..., layer7, layer8",
        "ignored    1  bn.num_batches_tracked",
    ]
    assert str(LoadReport(())) == "loaded     0"


def test_patterns_are_those_of_a_shell_and_their_case_counts():
    names = ["fc.weight", "fc.bias", "FC.bias", "layer1.fc.bias"]
    assert matching("load()", ("fc.*",), names) == {"fc.weight", "fc.bias"}
    assert matching("load()", ("*.bias", "fc.weigh[rst]"), names) == set(names)
    assert matching("load()", (), names) == set()
    with pytest.raises(ValueError, match=r"load\(\): nothing was changed, because 'head\.\*' in skip= matches no name"):
        matching("load()", ("fc.*", "head.*"), names)
