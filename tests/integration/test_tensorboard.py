"""Does TensorBoard show the penalty and the metric as they were?"""

import pytest
import torch
import torch.nn.functional as F

from invreg import CyclicRotation, L2InvarianceLoss, regularize
from tests.integration.plain_loop import RATE, labelled_batches
from tests.models import FlatteningMLP

pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")
pytest.importorskip("torchmetrics", reason="torchmetrics is not installed: pip install torchmetrics")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from invreg.metric import InvarianceError

WEIGHT = 0.5


def test_are_the_numbers_written_and_read_back(tmp_path):
    batches, validation = labelled_batches(8, 8, 5), labelled_batches(6, 3)
    invariance = L2InvarianceLoss(CyclicRotation(4))
    torch.manual_seed(1)
    model = FlatteningMLP(1, 4, 4).double()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    metric = InvarianceError(invariance)
    penalties, errors = [], []
    with SummaryWriter(tmp_path) as writer, regularize(model, invariance, WEIGHT) as handle:
        for step, (x, y) in enumerate(batches):
            model.train()
            penalties.append(WEIGHT * invariance(model, x).item())
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            writer.add_scalar("train/penalty", handle.value, step)
            model.eval()
            for v, _ in validation:
                metric.update(model, v)
            writer.add_scalar("validation/logit error", metric.compute(), step)
            metric.reset()
            errors.append(invariance(model, torch.cat([v for v, _ in validation])).item())
    events = EventAccumulator(str(tmp_path)).Reload()
    for tag, values in (("train/penalty", penalties), ("validation/logit error", errors)):
        assert [event.step for event in events.Scalars(tag)] == [0, 1, 2]
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(values, rel=1e-6)
