"""``theano-mgpu plan --nodes``: a step over many nodes, predicted."""

from __future__ import annotations

import pytest

SMALL = ["plan", "digits", "--num-classes", 10, "--batch-size", 16, "--contexts", "cpu:2"]
NODES = ["--nodes", 32, "--devices-per-node", 8, "--link", "400Gbit"]


def test_the_curve_goes_to_256_devices(told, tmp_path):
    words = [*SMALL, *NODES, "--step-seconds", 0.1, "--memory", "200GB/s", "--curve", tmp_path / "curve.svg"]
    found = told(*words, json_=True)["scaling"]
    assert (found["work"]["compute"], found["work"]["examples"], found["measured"]) == (0.1, 8, False)
    # ResNet-20's weights, by the paper 0.27 million, for three colours and ten classes; momentum's other copies.
    assert found["work"]["gradients"] / 4 == pytest.approx(272_000, rel=0.01)
    assert found["work"]["updated"] == pytest.approx(4, rel=0.02)
    assert (found["machines"]["link"], found["machines"]["latency"]) == (50e9, pytest.approx(5e-6))
    for points in found["curves"].values():
        assert [point["devices"] for point in points] == [2**k for k in range(9)]
        assert all(0.9 < point["efficiency"] <= 1 for point in points)
    host = found["curves"]["host"][-1]
    assert host["exchange"]["link"] == pytest.approx(2 * 31 / 32 * found["work"]["gradients"] / 50e9)
    assert (tmp_path / "curve.svg").read_text().startswith("<svg")


def test_compute_is_measured_where_it_is_not_given(told):
    found = told(*SMALL, *NODES, json_=True)["scaling"]
    assert found["measured"]
    assert 1e-4 < found["work"]["compute"] < 10
    # Simulated devices have no bus, and share the host's memory, which was measured too.
    assert "bus" not in found["machines"]
    assert found["machines"]["device_memory"] == pytest.approx(found["machines"]["host_memory"] / 8)


def test_a_table_says_what_was_given_and_what_is_predicted(told):
    text = told(*SMALL, *NODES, "--step-seconds", 0.1, "--ranks-per-node", 8, "--latency", "2us")
    assert "32 nodes of 8 devices, 8 ranks a node: predicted" in text
    assert "compute 100 ms a step of 8 images a device (given), 1.1 MB of gradients; 400 Gbit/s, 2 us" in text
    assert "bus 50 GB/s" in text
    rows = [line.split() for line in text.splitlines() if line.strip().startswith(("1 ", "256 "))]
    assert [row[:2] for row in rows] == [["1", "1"], ["256", "32"]]


def test_without_nodes_nothing_is_said_of_them(told):
    assert "scaling" not in told(*SMALL, json_=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--nodes", 0], "--nodes should be 1 or more, got 0"),
        (["--nodes", -2], "--nodes should be 1 or more, got -2"),
        (["--nodes", 4], "--link is missing: 4 nodes need the bandwidth between them"),
        (["--nodes", 4, "--link", "fast"], "'--link' should be a bandwidth greater than 0"),
        (["--nodes", 4, "--link", "0Gbit"], "got '0Gbit'. Write it as 400Gbit"),
        (["--devices-per-node", 8], "--devices-per-node is about many nodes, but --nodes is not given. Add --nodes"),
        (["--link", "400Gbit"], "--link is about many nodes, but --nodes is not given"),
        (["--curve", "a.svg"], "--curve is about many nodes"),
        ([*NODES, "--latency=-5us"], "'--latency' should be a time of 0 or more with its unit, got '-5us'"),
        ([*NODES, "--latency", "5"], "got '5'. Write it as 5us"),
        ([*NODES, "--memory", "much"], "'--memory' should be a bandwidth"),
        (["--nodes", 4, "--devices-per-node", 0], "--devices-per-node should be 1 or more, got 0"),
        (
            [*NODES, "--ranks-per-node", 3],
            "--ranks-per-node should divide the 8 devices of a node, got 3. Give 1, or 8",
        ),
        ([*NODES, "--step-seconds", 0], "--step-seconds should be greater than 0, got 0"),
        ([*NODES, "--step-seconds", "nan"], "--step-seconds should be greater than 0, got nan"),
        ([*NODES, "--hidden", 1.5], "--hidden should be a part from 0 to 1, got 1.5"),
        ([*NODES, "--spread", -1], "--spread should be 0 or more, got -1"),
        (
            [*NODES, "--curve", "curve.png"],
            "--curve should end in '.svg', the one format that is drawn, got 'curve.png'",
        ),
        (["--nodes", 10**6, "--devices-per-node", 8, "--link", "1Gbit"], "should be at most 1,048,576, got 8,000,000"),
        (["--nodes", "many"], "many"),
    ],
)
def test_what_cannot_be_planned_is_a_sentence(words, sentence, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused("plan", "digits", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_curve_that_cannot_be_written_names_the_file(refused, tmp_path):
    words = [*SMALL, *NODES, "--step-seconds", 0.1, "--curve", tmp_path / "gone" / "curve.svg"]
    assert f"'{tmp_path / 'gone'}" in refused(*words)
