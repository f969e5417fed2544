"""``fit``: what is logged, evaluated, kept and refused."""

from __future__ import annotations

import errno
import itertools

import numpy as np
import pytensor.tensor as pt
import pytest

import theano_mgpu as tm
from tests.training.network import examples, fresh, train
from theano_mgpu.data import Examples
from theano_mgpu.training import Batches, Checkpoints, MetricsFile, RunFolder, loop
from theano_mgpu.training.limits import Limits
from theano_mgpu.training.state import Progress


def evaluations(**values):
    """An evaluation whose metrics are these, one after the other."""
    turns = {name: itertools.chain(numbers) for name, numbers in values.items()}
    return {"val": lambda: {name: next(numbers) for name, numbers in turns.items()}}


def test_the_steps_of_a_run_are_foreseen_to_the_step():
    """Their number comes out of an epoch that is no round number, and is shown all the time."""
    for per_epoch in range(1, 300):
        for step in range(1, 4 * per_epoch, 7):
            total = Limits(epochs=4).total_steps(Progress(step=step, epoch=step / per_epoch))
            assert total == 4 * per_epoch


def test_fit_is_the_plain_loop(eight, tmp_path):
    made, _ = train(tmp_path, eight, max_steps=5)
    checksum = made.store.checksum()
    made = fresh(eight)
    rate = tm.schedules.warmup_cosine(0.5, total_steps=40, warmup_steps=3)
    batches = [*examples().batches(8, seed=5, epoch=0), *examples().batches(8, seed=5, epoch=1)]
    losses = [made.step(*batch, rate(number))["loss"] for number, batch in enumerate(batches[:5])]
    assert made.store.checksum() == checksum
    lines = MetricsFile(tmp_path / "metrics.jsonl").lines()
    assert [line["step"] for line in lines] == [2, 4, 5, 5]
    # Means over the examples since the line before: the third batch has six.
    expected = [np.mean(losses[:2]), (6 * losses[2] + 8 * losses[3]) / 14, losses[4]]
    np.testing.assert_allclose([line["loss"] for line in lines[:3]], expected, rtol=1e-7)
    assert [line["learning_rate"] for line in lines[:3]] == [rate(1), rate(3), rate(4)]
    assert [line["epoch"] for line in lines[:2]] == [16 / 22, 30 / 22]
    assert lines[0]["images_per_s"] == pytest.approx(16 / (2 * lines[0]["wait"] + 2 * lines[0]["step_seconds"]))
    for line in lines[1:3]:  # the first compiles
        parts = [line[part] for part in ("copy", "compute", "gather", "update")]
        assert sum(parts) == pytest.approx(line["step_seconds"], rel=0.2)
        assert min(parts) > 0


def test_epochs_end_a_run_and_the_learning_rate_may_be_the_steps_own(eight, tmp_path):
    made = fresh(eight)
    step = tm.function(
        [v := made.step.cut.split[0], w := made.step.cut.split[1]], tm.average(v.sum() + w.sum()), contexts=eight[:1]
    )
    fitted = tm.training.fit(step, Batches(examples(), 8), store=made.store, run=tmp_path, epochs=2, progress=False)
    assert (fitted.stopped_by, fitted.progress.step, fitted.progress.epoch) == ("epochs", 6, 2.0)
    assert fitted.metrics["top1"] is None
    assert "learning_rate" not in fitted.metrics


def test_the_best_is_kept_and_patience_ends_the_run(eight, tmp_path):
    fakes = evaluations(top1=[0.1, 0.5, 0.4, 0.5, 0.9])
    _, fitted = train(tmp_path, eight, epochs=9, evaluations=fakes, best="val_top1", patience=2, keep=1)
    assert (fitted.stopped_by, fitted.progress.step) == ("patience", 12)
    assert (fitted.progress.best, fitted.progress.best_step) == (0.5, 6)
    kept = Checkpoints(tmp_path / "checkpoints")
    assert (kept.best().progress.step, kept.newest().progress.step) == (6, 12)
    lines = MetricsFile(tmp_path / "metrics.jsonl").lines()
    assert [line["val_top1"] for line in lines if "val_top1" in line and "final" not in line] == [0.1, 0.5, 0.4, 0.5]
    assert (lines[-1]["final"], lines[-1]["stopped_by"]) == (True, "patience")


def test_averaged_parameters_are_evaluated_as_such(eight, tmp_path):
    """Against shadows that numpy averages, put in the parameters' place."""
    made = fresh(eight)
    params = made.store.trainable()
    shadows = [param.get_value() for param in params]

    def average(line):
        for shadow, param in zip(shadows, params, strict=True):
            shadow[...] = np.float32(0.9) * shadow + np.float32(0.1) * param.get_value()

    options = {"log_every": 1, "evaluate_every": 1, "callbacks": [average]}
    _, fitted = train(tmp_path, eight, max_steps=7, evaluated=True, made=made, **options)
    plain = {name: fitted.metrics[f"val_{name}"] for name in ("loss", "top1", "top5", "examples")}
    assert plain == tm.training.evaluate(made.predict, examples(seed=1), 8)
    for shadow, param in zip(shadows, params, strict=True):
        param.set_value(shadow)
    expected = tm.training.evaluate(made.predict, examples(seed=1), 8)
    assert fitted.metrics["ema_loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert fitted.metrics["ema_top1"] == expected["top1"]
    assert fitted.metrics["ema_loss"] != pytest.approx(plain["loss"], rel=1e-3)


def test_a_smaller_loss_is_better_and_nan_is_never_best(eight, tmp_path):
    fakes = evaluations(loss=[float("nan"), 3.0, 2.0, 4.0])
    _, fitted = train(tmp_path, eight, max_steps=4, evaluate_every=1, evaluations=fakes, best="val_loss")
    assert (fitted.progress.best, fitted.progress.best_step, fitted.progress.since_best) == (2.0, 3, 1)


def test_callbacks_see_each_line_and_may_end_the_run(eight, tmp_path):
    seen = []
    ends = [seen.append, lambda line: line["step"] >= 4]
    _, fitted = train(tmp_path, eight, max_steps=10, callbacks=iter(ends))
    assert ([line["step"] for line in seen], fitted.stopped_by) == ([2, 4], "callback")


def test_data_that_ends_is_an_error(eight, tmp_path):
    class Few:
        def batches_from(self, cursor):
            return itertools.islice(Batches(examples(), 8).batches_from(cursor), 2)

    made = fresh(eight)
    options = {"epochs": 9, "learning_rate": lambda number: 0.1, "progress": False}
    with pytest.raises(ValueError, match="'batches' ended after step 2"):
        tm.training.fit(made.step, Few(), store=made.store, run=tmp_path, **options)


def test_a_run_is_not_begun_over_another(eight, tmp_path):
    train(tmp_path, eight, max_steps=2)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match=r"has a run in it.*resume=True"):
        train(tmp_path, eight, max_steps=2)
    with RunFolder(tmp_path), pytest.raises(tm.RunInUseError):
        train(tmp_path, eight, max_steps=3, resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_other_classes_are_refused(eight, tmp_path):
    train(tmp_path, eight, max_steps=2, must_match={"classes": ["cat", "dog"]})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="only in the checkpoint 'dog', only here 'cow'"):
        train(tmp_path, eight, max_steps=3, resume=True, must_match={"classes": ["cat", "cow"]})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("choice", ["raise", "warn"])
def test_a_full_disk_stops_the_run_or_not(eight, tmp_path, monkeypatch, choice):
    real, written = loop.Checkpoints, tm.training.checkpoints.write_checkpoint
    assert real is Checkpoints

    def full_from_step_4(path, checkpoint):
        if checkpoint.progress.step >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, checkpoint)

    monkeypatch.setattr(tm.training.checkpoints, "write_checkpoint", full_from_step_4)
    if choice == "raise":
        with pytest.raises(OSError, match="No space left"):
            train(tmp_path, eight, max_steps=9, on_save_error=choice)
    else:
        with pytest.warns(RuntimeWarning, match="No space left"):
            _, fitted = train(tmp_path, eight, max_steps=9, on_save_error=choice)
        assert fitted.progress.step == 9
    assert Checkpoints(tmp_path / "checkpoints").newest().progress.step == 2


def test_a_skipped_step_counts_but_not_its_loss(eight, tmp_path):
    store = tm.ParameterStore()
    w = store.param("w", (), init=1.0)
    x, y = pt.matrix("x", dtype="float32"), pt.ivector("y")
    loss = (w * x + y[:, None]).mean()
    updates = tm.updates.sgd(tm.grad(loss, [w]), [w], learning_rate=0.5)
    step = tm.function([x, y], tm.average(loss), updates=updates, contexts=eight[:1], nonfinite="skip")
    broken = Examples(np.array([[np.nan], [2.0]], "float32"), np.zeros(2, "int32"))
    fitted = tm.training.fit(
        step, Batches(broken, 1, seed=None), store=store, run=tmp_path, epochs=1, log_every=9, progress=False
    )
    assert (fitted.progress.step, step.skipped, float(w.get_value())) == (2, 1, 0.0)
    assert fitted.metrics["loss"] == 2.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "at least one of 'epochs', 'max_steps' and 'time_limit'"),
        ({"max_steps": 0}, "'max_steps' should be a positive number or None, not 0"),
        ({"epochs": "3"}, "'epochs' should be a positive number or None, not '3'"),
        ({"max_steps": 1, "log_every": 0}, "'log_every' should be an integer of at least 1, not 0"),
        ({"max_steps": 1, "checkpoint_every": 1.5}, "'checkpoint_every' should be an integer"),
        ({"max_steps": 1, "best": "val_top1"}, "best='val_top1' needs 'evaluations'"),
        ({"max_steps": 1, "patience": 2}, "'patience' counts evaluations"),
    ],
)
def test_arguments_are_checked_before_a_folder_is_made(eight, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        train(tmp_path / "run", eight, **options)
    assert not (tmp_path / "run").exists()


def test_a_best_that_no_evaluation_gives_is_an_error(eight, tmp_path):
    with pytest.raises(ValueError, match="best='val_top9' is not among what the evaluations give: val_top1"):
        train(tmp_path, eight, max_steps=1, evaluations=evaluations(top1=[0.1]), best="val_top9")


def test_outputs_that_are_no_averages_are_refused(eight, tmp_path):
    made = fresh(eight)
    with pytest.raises(TypeError, match=r"a dict of averages.*not list of shapes \(8, 3\)"):
        tm.training.fit(
            lambda_step(made), Batches(examples(), 8), store=made.store, run=tmp_path, max_steps=1, progress=False
        )


def lambda_step(made):
    """A step over both inputs that gives its answers in a list."""
    images, labels = made.step.cut.split
    answers = images[:, :3] + labels[:, None]
    return tm.function([images, labels], [answers], contexts=made.step.contexts)
