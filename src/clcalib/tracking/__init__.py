"""Experiment trackers: TensorBoard and MLflow are told what a run does, and never decide how it goes.

One tracker is one run.  It is an observer, so it takes losses as they come; ``finish`` gives it what was measured::

    with clcalib.tracking.tensorboard("runs/events/first") as tracker:
        result = clcalib.quantize(..., observer=tracker)
        tracker.finish(result.record, result.trace)
"""

from clcalib.tracking.event_files import tensorboard
from clcalib.tracking.mlflow_runs import mlflow
from clcalib.tracking.tracker import Tracker

__all__ = ["Tracker", "mlflow", "tensorboard"]
