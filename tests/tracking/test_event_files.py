"""What TensorBoard reads in the event files is what the run did."""

from __future__ import annotations

import errno
import json
import os
import random
import re

import pytest
import torch
from tests.tracking.small import quantized, random_states, tensors_of

import clcalib
from clcalib.errors import ArgumentError, MissingPackageError, StorageError, TrackingWarning
from clcalib.tracking import event_files

pytest.importorskip("tensorboard", reason="TensorBoard is not installed")


def read(folder):
    """What TensorBoard's own reader finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(events):
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events") / "first"
    with clcalib.tracking.tensorboard(folder) as tracker:
        result = quantized(observer=tracker)
        tracker.finish(result.record, result.trace, {"notes.txt": "by hand"})
    return folder, result


def test_the_losses_are_those_of_the_trace(tracked):
    folder, result = tracked
    found = scalars(read(folder))
    for unit in result.trace.units:
        for term, losses in unit.losses.items():
            known = dict(zip(unit.steps, losses, strict=True))
            told = found[f"loss/{unit.name}/{term}"]
            assert [step for step, _ in told] == sorted({step for step, _ in told})
            assert told[-1][0] == unit.steps[-1]
            for step, value in told:
                assert value == pytest.approx(known[step], rel=1e-5)


def test_the_errors_and_measures_of_units_are_those_of_the_record(tracked):
    folder, result = tracked
    found = scalars(read(folder))
    for index, unit in enumerate(result.record.units):
        expected = {
            "error_before": unit.reconstruction_error.calibration.before,
            "error_after": unit.reconstruction_error.calibration.after,
            "sqnr_db": unit.sqnr_db.calibration,
            "bound_before": unit.mutual_information_bound.calibration.before,
            "bound_after": unit.mutual_information_bound.calibration.after,
        }
        for name, value in expected.items():
            assert dict(found[f"units/{name}"])[index] == pytest.approx(value, rel=1e-5), name


def test_the_result_the_settings_and_the_record_are_there(tracked):
    from tensorboard.plugins.hparams import plugin_data_pb2

    folder, result = tracked
    events = read(folder)
    assert scalars(events)["result/quantized_top1"] == [(0, pytest.approx(result.record.quantized_top1))]
    (text,) = events.Tensors("run.json/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert json.loads(shown.removeprefix("```json\n").removesuffix("\n```")) == result.record.model_dump(mode="json")
    assert events.Tensors("notes.txt/text_summary")
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["recipe"].string_value == result.record.recipe
    assert settings["weight_bits"].number_value == 2


def test_the_result_and_the_random_states_are_the_same_without_a_tracker(tmp_path):
    torch.manual_seed(3)
    plain, states = quantized(), random_states()
    torch.manual_seed(3)
    random.setstate(states[0])
    with clcalib.tracking.tensorboard(tmp_path) as tracker:
        result = quantized(observer=tracker)
        tracker.finish(result.record, result.trace)
    assert random_states() == states
    assert result.trace == plain.trace
    assert all(torch.equal(*pair) for pair in zip(tensors_of(plain), tensors_of(result), strict=True))


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    folder = tmp_path / "run"
    tracker = clcalib.tracking.tensorboard(folder)
    tracker.unit_started(0, 2, "a", "layer", 9)
    for step in range(3):
        tracker.step(step, {"Lp": float(step)})
    tracker.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with clcalib.tracking.tensorboard(folder, is_resumed=True) as tracker:
        tracker.unit_started(0, 2, "a", "layer", 9)
        for step in range(1, 5):  # the steps since the last save are done again, to the same losses
            tracker.step(step, {"Lp": float(step)})
        tracker.unit_finished(0, "a", 2.0, 1.0)
    found = scalars(read(folder))
    assert found["loss/a/Lp"] == [(step, float(step)) for step in range(5)]
    assert found["units/error_after"] == [(0, 1.0)]
    assert len(list(folder.iterdir())) == 2


def test_runs_of_one_name_have_folders_of_their_own(tmp_path):
    for name, key in (("w4", "here"), ("w4-2", "there"), ("w4-3", "here"), ("w4-4", "there")):
        folder = event_files.own_folder(tmp_path, "w4", key, is_resumed=False)
        assert folder == tmp_path / name
        with clcalib.tracking.tensorboard(folder):
            pass
    assert event_files.own_folder(tmp_path, "w4", "here", is_resumed=True) == tmp_path / "w4-3"
    assert event_files.own_folder(tmp_path, "w4", "nowhere", is_resumed=True) == tmp_path / "w4-5"


def test_a_folder_that_cannot_be_made_is_told_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written: Not a directory"):
        clcalib.tracking.tensorboard(tmp_path / "file" / "events")


def test_a_full_disk_ends_the_tracking_and_not_the_run(tmp_path, monkeypatch):
    with clcalib.tracking.tensorboard(tmp_path / "run") as tracker:

        def full(*values):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(tracker._sink._records, "write", full)
        with pytest.warns(TrackingWarning, match="No space left on device; the run goes on") as told:
            result = quantized(observer=tracker)
        tracker.finish(result.record)
    assert len(told) == 1
    assert len(result.record.units) == 3
    assert str(told[0].message) in result.record.warnings


def test_a_missing_package_names_its_install_command(monkeypatch):
    monkeypatch.setattr(event_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=re.escape('pip install "clcalib[tensorboard]"')):
        clcalib.tracking.tensorboard("nowhere")


def test_a_folder_with_events_of_another_run_is_refused(tracked):
    with pytest.raises(ArgumentError, match="expected a folder without events"):
        clcalib.tracking.tensorboard(tracked[0])
