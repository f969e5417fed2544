"""The scaling curve's picture: what is drawn stands where its numbers say."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from theano_mgpu.scaling import Machines, Work, curve, draw_scaling

SVG = "{http://www.w3.org/2000/svg}"


def curves(nodes=32, devices=8):
    work, machines = Work(compute=0.1, examples=256, gradients=102_228_128), Machines(link=1e9)
    return {update: curve(work, machines, nodes, devices, update_on=update) for update in ("host", "device")}


def drawn(path):
    return ElementTree.parse(path).getroot()


def test_each_update_has_a_dot_for_each_number_of_devices(tmp_path):
    points = curves()
    root = drawn(draw_scaling(tmp_path / "a.svg", points, "32 nodes", "a line about them"))
    dots = {kind: [c for c in root.iter(f"{SVG}circle") if kind in c.get("class")] for kind in ("update", "batch")}
    for kind, update in (("update", "host"), ("batch", "device")):
        assert len(dots[kind]) == 2 * len(points[update]) == 18
        heights = [400 - float(dot.get("cy")) for dot in dots[kind][9:]]  # of the right panel, 270 high
        assert heights == pytest.approx([270 * point.efficiency for point in points[update]], abs=0.1)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"32 nodes", "a line about them", "1", "256", "host update", "device update", "100%"} <= set(texts)


@pytest.mark.parametrize(("nodes", "devices"), [(1, 1), (3, 1), (3, 7), (5, 8)])
def test_any_number_of_devices_can_be_drawn(nodes, devices, tmp_path):
    root = drawn(draw_scaling(tmp_path / "a.svg", curves(nodes, devices), "title", "note"))
    for circle in root.iter(f"{SVG}circle"):
        assert 90 <= float(circle.get("cx")) <= 970
        assert 130 <= float(circle.get("cy")) <= 400


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'path' should end in \"\.svg\".*got '.*a\.png'\. Give 'a\.svg'"):
        draw_scaling(tmp_path / "a.png", curves(), "title", "note")
