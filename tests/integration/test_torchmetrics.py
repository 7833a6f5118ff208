"""Is ``InvarianceError`` a metric that torchmetrics accepts, and the number that direct measurement gives?"""

import copy
import pickle
import subprocess
import sys

import pytest
import torch

from invreg import CyclicRotation, Dihedral, KLInvarianceLoss, L2InvarianceLoss, OnKeys, regularize
from tests.models import FlatteningMLP

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed: pip install torchmetrics")

from torchmetrics.utilities.checks import check_forward_full_state_property  # noqa: E402

from invreg.metric import InvarianceError  # noqa: E402

turns = CyclicRotation(4)
SIZES = (6, 6, 3)


def network(dtype=torch.float64):
    torch.manual_seed(1)
    return FlatteningMLP(1, 4, 4).to(dtype).eval()


def batches(sizes=SIZES, dtype=torch.float64):
    x = torch.randn(sum(sizes), 1, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(2))
    return x.split(sizes)


def looped(net, xs) -> float:
    """Half the squared distance of the logits, sample by sample and turn by turn."""
    found = []
    with torch.no_grad():
        for one in torch.cat(xs).double():
            reference = net(one[None])[0]
            for quarters in (1, 2, 3):
                turned = net(torch.rot90(one, quarters, (-2, -1))[None])[0]
                found.append(sum((a - b) ** 2 for a, b in zip(reference.tolist(), turned.tolist(), strict=True)) / 2)
    return sum(found) / len(found)


def measured(net, xs, loss=None):
    metric = InvarianceError(loss or L2InvarianceLoss(turns))
    for x in xs:
        metric.update(net, x)
    return metric


@pytest.mark.parametrize("sizes", [(15,), SIZES, (1,) * 15], ids=["one", "uneven", "single"])
def test_is_it_the_mean_over_all_samples(sizes):
    net = network()
    assert measured(net, batches(sizes)).compute().item() == pytest.approx(looped(net, batches()), rel=1e-12)


def test_are_the_sums_kept_in_float64():
    net, xs = network(torch.float32), batches(dtype=torch.float32)
    found = measured(net, xs).compute()
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(looped(network(), xs), rel=1e-6)
    metric = InvarianceError(L2InvarianceLoss(turns))
    metric.update(lambda x: x.flatten(1)[:, :2], 1e3 * xs[0])
    large = metric.total.clone()
    metric.update(lambda x: x.flatten(1)[:, :2], 1e-2 * xs[0])
    assert 0 < metric.total - large < 1e-2  # which float32 would lose


def test_are_outputs_that_are_known_not_computed_again():
    net, (x, *_), rows = network(), batches(), []

    def counting(v):
        rows.append(len(v))
        return net(v)

    metric = InvarianceError(L2InvarianceLoss(turns))
    metric.update(counting, x, net(x))
    assert rows == [3 * len(x)]
    assert metric.compute().item() == pytest.approx(looped(net, [x]), rel=1e-12)


def test_does_forward_give_the_batch_and_keep_the_sum():
    net, xs = network(), batches()
    metric = InvarianceError(L2InvarianceLoss(turns))
    for x in xs:
        assert metric(net, x).item() == pytest.approx(looped(net, [x]), rel=1e-12)
    assert metric.compute().item() == pytest.approx(looped(net, xs), rel=1e-12)


def test_does_torchmetrics_find_that_batches_need_no_full_state(capsys):
    arguments = {"model": network(), "inputs": batches()[0]}
    check_forward_full_state_property(
        InvarianceError, {"loss": L2InvarianceLoss(turns)}, arguments, num_update_to_compare=[20], reps=2
    )
    said = capsys.readouterr().out
    assert "Full state for 20 steps took" in said  # where batches depend on one another it times nothing
    assert InvarianceError.full_state_update is False
    assert InvarianceError.higher_is_better is False
    assert InvarianceError.is_differentiable is False
    assert not InvarianceError(L2InvarianceLoss(turns))(**arguments).requires_grad


def test_does_reset_forget():
    net, (first, second, _) = network(), batches()
    metric = measured(net, [first])
    metric.reset()
    metric.update(net, second)
    assert metric.compute().item() == pytest.approx(looped(net, [second]), rel=1e-12)


def test_do_two_metrics_merge_into_that_of_all():
    net, xs = network(), batches()
    metric = measured(net, xs[:1])
    metric.merge_state(measured(net, xs[1:]))
    assert metric.compute().item() == pytest.approx(looped(net, xs), rel=1e-12)


def test_is_it_nan_without_data():
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert InvarianceError(L2InvarianceLoss(turns)).compute().isnan()


def test_does_it_survive_pickling_and_copying():
    net, xs = network(), batches()
    metric = measured(net, xs[:2], L2InvarianceLoss(turns, samples=3, rng=torch.Generator().manual_seed(0)))
    for twin in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()):
        twin.update(net, xs[2])
        assert twin.compute().item() == pytest.approx(looped(net, xs), rel=1e-12)
    assert metric.compute().item() == pytest.approx(looped(net, xs[:2]), rel=1e-12)


def test_does_it_go_into_a_collection():
    net, xs = network(), batches()
    collection = torchmetrics.MetricCollection(
        {"LI": InvarianceError(L2InvarianceLoss(turns)), "DI": InvarianceError(KLInvarianceLoss(turns))}
    )
    for x in xs:
        collection.update(net, x)
    found = {name: value.item() for name, value in collection.compute().items()}
    assert found["LI"] == pytest.approx(looped(net, xs), rel=1e-12)
    assert found["DI"] == pytest.approx(KLInvarianceLoss(turns)(net, torch.cat(xs)).item(), rel=1e-12)
    assert found["DI"] != pytest.approx(found["LI"], rel=1e-3)


def test_are_the_sums_converted_only_on_demand():
    net, xs = network(), batches()
    metric = measured(net, xs)
    for converted in (metric.half(), metric.to(torch.bfloat16), torch.nn.Sequential(metric).to(torch.bfloat16)[0]):
        assert converted.compute().item() == pytest.approx(looped(net, xs), rel=1e-12)
    metric.reset()
    assert metric.total.dtype == torch.float64
    assert metric.set_dtype(torch.float32).total.dtype == torch.float32
    for x in xs:
        metric.update(net, x)
    assert metric.compute().dtype == torch.float32
    assert metric.compute().item() == pytest.approx(looped(net, xs), rel=1e-6)
    assert {state.device.type for state in metric.to("meta").metric_state.values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_does_it_measure_on_the_model_s_device():
    net, xs = network(), batches()
    expected = looped(net, xs)
    net.cuda()
    for place in ("cpu", "cuda"):
        metric = InvarianceError(L2InvarianceLoss(turns)).to(place)
        for x in xs:
            metric.update(net, x.cuda())
        assert metric.compute().device.type == place
        assert metric.compute().item() == pytest.approx(expected, rel=1e-12)


def test_do_drawn_elements_come_from_the_loss_s_generator():
    net, xs = network(), batches()
    found = []
    for seed in (5, 5, 6):
        loss = L2InvarianceLoss(turns, samples=1, rng=torch.Generator().manual_seed(seed))
        before = torch.get_rng_state()
        found.append(measured(net, xs, loss).compute().item())
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1] != found[2]
    wide = [x.repeat(400, 1, 1, 1) for x in xs]
    drawn = measured(net, wide, L2InvarianceLoss(turns, samples=1, rng=torch.Generator().manual_seed(0)))
    assert drawn.compute().item() == pytest.approx(looped(net, xs), rel=0.05)


def test_does_a_sparing_loss_measure_every_sample_of_every_batch():
    net, xs = network(), batches()
    loss = L2InvarianceLoss(turns, fraction=0.5, every=3)
    assert measured(net, xs, loss).compute().item() == pytest.approx(looped(net, xs), rel=1e-12)


def test_is_the_model_left_alone():
    net, (x, *_) = network().train(), batches()
    handle = regularize(net, L2InvarianceLoss(turns), 0.1)
    metric = measured(net, [x])
    assert net.training
    assert handle.value is None  # nothing was recorded, so nothing penalised
    assert all(p.grad is None for p in net.parameters())
    assert not metric.total.requires_grad
    handle.remove()


def test_are_batches_of_several_tensors_counted_by_samples():
    group = OnKeys({"image": turns})

    def model(batch):
        return batch["image"].flatten(1)[:, :3] + batch["age"]

    metric = InvarianceError(L2InvarianceLoss(group))
    for x in batches():
        metric.update(model, {"image": x, "age": torch.ones(len(x), 1, dtype=x.dtype)})
    assert metric.count == sum(SIZES)
    assert metric.compute().item() == pytest.approx(looped(lambda x: x.flatten(1)[:, :3], batches()), rel=1e-12)


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"loss must be an InvarianceLoss, e\.g\. L2"):
        InvarianceError(turns)
    with pytest.raises(TypeError, match="floating"):
        InvarianceError(L2InvarianceLoss(turns)).update(network(), torch.zeros(2, 1, 4, 4, dtype=torch.int64))


def test_is_a_missing_torchmetrics_named():
    code = "import sys; sys.modules['torchmetrics'] = None; import invreg; import invreg.metric"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert 'ImportError: invreg.metric needs torchmetrics: python -m pip install "invreg[metrics]"' in answer.stderr


def _process(rank, store, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    net, xs = network(), batches()
    metric = measured(net, xs[:1] if rank == 0 else xs[1:])
    drawn = measured(net, xs, L2InvarianceLoss(Dihedral(4), samples=1))
    values = [metric.compute().item(), metric.compute().item(), metric.count.item(), drawn.compute().item()]
    metric.reset()
    metric.update(net, xs[rank])
    values.append(metric.compute().item())
    torch.save(values, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_do_two_processes_report_the_mean_over_both(tmp_path):
    torch.multiprocessing.spawn(_process, (tmp_path / "store", tmp_path), nprocs=2)
    net, xs = network(), batches()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for values, rows in zip(found, (6, 9), strict=True):
        assert values[:2] == pytest.approx([looped(net, xs)] * 2, rel=1e-12)
        assert values[2] == rows  # after it, each has its own part again
        assert values[4] == pytest.approx(looped(net, xs[:2]), rel=1e-12)
    assert found[0][3] == found[1][3]
