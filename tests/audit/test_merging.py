"""Do audits of parts of the data make that of the whole, and does none of them grow with its part?"""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invreg import CyclicRotation, Flip, InvarianceAudit, PlanarRotation, SaliencyMap, SignFlip, measure_invariance
from tests import oracle
from tests.audit.sameness import assert_same_report


def mlp(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, classes)).double()


def data(samples: int = 24) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 1, 4, 4, dtype=torch.float64), torch.randint(3, (samples,))


def in_batches(x: Tensor, y: Tensor | None = None, size: int = 5) -> list:
    return [x[i : i + size] if y is None else (x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def audited(model: nn.Module, parts: list[Any], group: Any = None, **settings: Any) -> list[InvarianceAudit]:
    """An audit of each part."""
    audits = []
    for x, y in parts:
        audits.append(InvarianceAudit(model, group or CyclicRotation(4), **settings))
        for inputs, labels in ((batch, None) for batch in in_batches(x)) if y is None else in_batches(x, y):
            audits[-1].update(inputs, labels)
    return audits


def merged(audits: list[InvarianceAudit]) -> InvarianceAudit:
    first, *others = audits
    for other in others:
        first.merge(other)
    return first


def cut(x: Tensor, y: Tensor | None, ends: list[int]) -> list[tuple[Tensor, Tensor | None]]:
    starts = [0, *ends]
    return [(x[a:b], None if y is None else y[a:b]) for a, b in zip(starts, [*ends, len(x)], strict=True)]


SETTINGS = {
    "no maps": {"saliency": None},
    "maps": {"saliency": SaliencyMap(steps=2), "saliency_samples": None},
    "few kept": {"saliency": None, "kept_samples": 7, "worst_samples": 3},
    "none kept": {"saliency": None, "kept_samples": 0, "worst_samples": 0},
    "values": {"outputs": "values"},
    "skipping": {"saliency": None, "on_error": "skip"},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("ends", [[12], [1], [23], [5, 11, 20]], ids=str)
@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_parts_make_the_whole(name, ends, labelled):
    model, (x, y) = mlp(), data()
    if name == "skipping":
        x[[0, 3, 13]] = torch.nan
        ends = [12] if ends == [1] else ends
    y = y if labelled else None
    (whole,) = audited(model, [(x, y)], **SETTINGS[name])
    together = merged(audited(model, cut(x, y, ends), **SETTINGS[name]))
    actual, expected = together.report(), whole.report()
    assert_same_report(actual, expected, but=["skipped_samples"])
    found, wanted = ([(one.index, one.count) for one in r.skipped_samples] for r in (actual, expected))
    assert found == wanted == ([(0, 1), (3, 1), (13, 1)] if name == "skipping" else [])
    for error in ("logit_error", "worst_logit_error"):
        for share in (0.0, 0.25, 0.5, 0.9, 1.0):
            assert actual.quantile(error, share) == pytest.approx(expected.quantile(error, share), rel=1e-12)
    if name == "few kept":
        assert actual.per_sample["index"].tolist() == list(range(7))
        values = measure_invariance(model, [x], CyclicRotation(4), saliency=None).per_sample["logit_error"]
        assert actual.quantile("logit_error", 0.5) == pytest.approx(sorted(values)[11], rel=0.006)


def test_the_order_is_that_of_merging():
    """Positions in the data go on where those of the audit before ended."""
    model, (x, y) = mlp(), data()
    first, second = audited(model, cut(x, y, [10]), saliency=None)
    second.merge(first)
    swapped = torch.cat([x[10:], x[:10]]), torch.cat([y[10:], y[:10]])
    (expected,) = audited(model, [swapped], saliency=None)
    assert_same_report(second.report(), expected.report())


def test_the_audit_that_is_merged_stays_as_it_was_and_may_go_on():
    model, (x, y) = mlp(), data()
    settings = {"saliency": SaliencyMap(steps=2), "saliency_samples": None, "kept_samples": 4}
    first, second = audited(model, cut(x, y, [10]), **settings)
    before = second.report()
    first.merge(second)
    assert_same_report(second.report(), before, 0)
    after = first.report()
    second.update(x[:3], y[:3])
    second.report()
    assert_same_report(first.report(), after, 0)
    first.update(x[:3], y[:3])
    (expected,) = audited(model, [(torch.cat([x, x[:3]]), torch.cat([y, y[:3]]))], **settings)
    assert_same_report(first.report(), expected.report())


def test_an_audit_may_be_merged_with_itself():
    model, (x, y) = mlp(), data()
    settings = {"saliency": SaliencyMap(steps=2), "saliency_samples": None}
    (audit,) = audited(model, [(x, y)], **settings)
    audit.merge(audit)
    (expected,) = audited(model, [(torch.cat([x, x]), torch.cat([y, y]))], **settings)
    assert_same_report(audit.report(), expected.report())


@pytest.mark.parametrize("which", [0, 1])
def test_an_audit_of_nothing_adds_nothing(which):
    model, (x, y) = mlp(), data()
    (full,) = audited(model, [(x, y)], saliency=None)
    expected = full.report()
    empty = InvarianceAudit(model, CyclicRotation(4), saliency=None)
    first, second = (full, empty) if which else (empty, full)
    first.merge(second)
    assert_same_report(first.report(), expected, 0)


def test_drawn_elements_are_those_that_each_audit_drew():
    model, (x, y) = mlp(), data()
    parts = cut(x, y, [10])
    audits = audited(model, parts, PlanarRotation(), saliency=None, samples=2)
    alone = [measure_invariance(model, [part], PlanarRotation(), saliency=None, samples=2) for part in parts]
    report = merged(audits).report()
    values = [value for one in alone for value in one.per_sample["logit_error"].tolist()]
    expected = oracle.estimate(values)
    assert report.per_sample["logit_error"].tolist() == pytest.approx(values, rel=1e-12)
    assert report.logit_error.mean == pytest.approx(expected.mean, rel=1e-12)
    assert report.logit_error.standard_error == pytest.approx(expected.standard_error, rel=1e-12)


def test_audits_of_models_with_noise_and_of_batches_without_it():
    """Each number counts the samples that it was measured on."""
    network, (x, _) = mlp(), data()
    loud = [True]

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, v: Tensor) -> Tensor:
            return self.network(v) + (torch.randn(len(v), 3) if loud[0] else 0)

    model = Sometimes()
    first = InvarianceAudit(model, SignFlip(), saliency=None)
    first.update(x[:10])
    loud[0] = False
    second = InvarianceAudit(model, SignFlip(), saliency=None)
    second.update(x[10:])
    first.merge(second)
    report = first.report()
    assert (report.logit_error.count, report.noise_error.count) == (24, 10)
    assert report.per_sample["noise_error"].shape == (24,)


# What does not go together


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("group", {"group": Flip()}),
        ("outputs", {"outputs": "values"}),
        ("samples", {"samples": 1}),
        ("saliency", {"saliency": SaliencyMap(steps=2)}),
        ("mode", {"mode": "train"}),
        ("kept_samples", {"kept_samples": 3}),
        ("worst_samples", {"worst_samples": 3}),
    ],
)
def test_audits_with_other_settings_are_refused(name, settings):
    model, (x, y) = mlp(), data()
    settings = {"group": SignFlip(), "saliency": None} | settings
    other = InvarianceAudit(model, settings.pop("group"), **settings)
    other.update(x, y)
    (audit,) = audited(model, [(x, y)], SignFlip(), saliency=None)
    before = audit.report()
    with pytest.raises(ValueError, match=f"its {name} is"):
        audit.merge(other)
    assert_same_report(audit.report(), before, 0)


def test_audits_of_another_model_are_refused():
    x, y = data()
    (audit,) = audited(mlp(), [(x, y)], saliency=None)
    (other,) = audited(mlp(), [(x, y)], saliency=None)
    with pytest.raises(ValueError, match="its model is"):
        audit.merge(other)


@pytest.mark.parametrize("other", [None, 3, "audit", {"tally": 0}])
def test_what_is_no_audit_is_refused(other):
    (audit,) = audited(mlp(), [data()], saliency=None)
    with pytest.raises(TypeError, match="merged with another InvarianceAudit"):
        audit.merge(other)
    with pytest.raises(TypeError, match="merged with another InvarianceAudit"):
        audit.merge(audit.report())


def test_audits_with_and_without_labels_are_refused():
    """As batches with and without labels are in one audit: accuracies would be of a part."""
    model, (x, y) = mlp(), data()
    first, second = audited(model, [(x[:10], y[:10]), (x[10:], None)], saliency=None)
    before = first.report()
    with pytest.raises(ValueError, match="labels"):
        first.merge(second)
    assert_same_report(first.report(), before, 0)


def test_a_merge_that_is_refused_changes_nothing():
    """Callables are told apart by their names alone, so that these two seem to be one model."""
    x, _ = data()
    first, second = (
        InvarianceAudit(lambda v, c=classes: v.flatten(1)[:, :c], SignFlip(), saliency=None) for classes in (3, 4)
    )
    first.update(x)
    second.update(x)
    before = first.report()
    with pytest.raises(ValueError, match="the same classes"):
        first.merge(second)
    assert_same_report(first.report(), before, 0)


def test_a_batch_that_is_refused_changes_nothing():
    x, y = data()
    audit = InvarianceAudit(lambda v: v.flatten(1)[:, : 3 if len(v) == 10 else 5], SignFlip(), saliency=None)
    audit.update(x[:10], y[:10])
    before = audit.report()
    with pytest.raises(ValueError, match="the same classes"):
        audit.update(x[10:], y[10:])
    assert_same_report(audit.report(), before, 0)


# Audits that are interrupted


def test_what_was_measured_before_an_interruption_is_told():
    model, (x, y) = mlp(), data()

    def broken() -> Iterator[Any]:
        yield from in_batches(x, y)[:2]
        raise KeyboardInterrupt

    audit = InvarianceAudit(model, CyclicRotation(4), saliency=None)
    with pytest.raises(KeyboardInterrupt):
        audit.run(broken())
    report = audit.report()
    assert (report.ended, report.samples) == ("interrupted", 10)
    expected = measure_invariance(model, in_batches(x[:10], y[:10]), CyclicRotation(4), saliency=None)
    assert_same_report(report, expected, but=["ended"])
    assert set(str(report).splitlines()) != set(str(expected).splitlines())
    assert type(report).from_dict(report.to_dict()).ended == "interrupted"
    (whole,) = audited(model, [(x[10:], y[10:])], saliency=None)
    audit.merge(whole)
    assert (audit.report().ended, audit.report().samples) == ("interrupted", 24)


def test_a_model_that_is_interrupted_leaves_whole_batches():
    """Also while a batch is taken apart, of which some samples were measured already."""
    network, (x, y) = mlp(), data()
    x[7] = torch.nan
    calls, stop = [0], [10**9]

    def model(v: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == stop[0]:
            raise KeyboardInterrupt
        return network(v)

    settings = {"saliency": None, "on_error": "skip", "samples": 1}
    measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)
    assert calls[0] > 15
    seen = set()
    for at in range(4, calls[0]):
        calls[0], stop[0] = 0, at
        audit = InvarianceAudit(model, CyclicRotation(4), **settings)
        with pytest.raises(KeyboardInterrupt):
            audit.run(in_batches(x, y))
        stop[0] = 10**9
        report = audit.report()
        samples = report.seen
        seen.add(samples)
        assert samples % 5 == 0
        expected = measure_invariance(model, in_batches(x[:samples], y[:samples]), CyclicRotation(4), **settings)
        assert_same_report(report, expected, but=["ended"])
    assert seen == {5, 10, 15, 20}


def test_an_audit_of_nothing_has_no_report():
    audit = InvarianceAudit(mlp(), SignFlip())
    with pytest.raises(ValueError, match="At least one sample must be measured"):
        audit.report()


def test_batches_by_hand_are_those_of_a_loader():
    model, (x, y) = mlp(), data()
    settings = {"saliency": SaliencyMap(steps=2), "samples": 2}
    (audit,) = audited(model, [(x, y)], **settings)
    expected = measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)
    assert_same_report(audit.report(), expected, 0)


def test_an_audit_by_hand_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    audit = InvarianceAudit(model, SignFlip(), saliency=None, mode="train")
    x, _ = data()
    numbers = torch.get_rng_state()
    audit.update(x)
    assert model.training
    assert torch.equal(torch.get_rng_state(), numbers)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


# How large it is


def size_of(audit: InvarianceAudit) -> int:
    buffer = io.BytesIO()
    torch.save(audit.state_dict(), buffer)
    return buffer.getbuffer().nbytes


def test_samples_that_are_kept_are_bounded():
    model, (x, y) = mlp(), data(400)
    whole = measure_invariance(model, in_batches(x, y), SignFlip(), saliency=None)
    for kept in (0, 1, 50, 399, 400, 1000):
        report = measure_invariance(model, in_batches(x, y, 7), SignFlip(), saliency=None, kept_samples=kept)
        most = min(kept, 400)
        assert len(report.per_sample) == most
        assert sum(report.histograms["logit_error"].counts.values() if most < 400 else [0]) == 400 - most
        for name in report.per_sample.columns if most else ():
            assert report.per_sample[name].tolist() == pytest.approx(whole.per_sample[name][:most].tolist(), rel=1e-12)
        for share in (0, 0.1, 0.5, 0.99, 1):
            expected = whole.quantile("logit_error", share)
            assert report.quantile("logit_error", share) == pytest.approx(expected, rel=0.0051)


def test_an_audit_does_not_grow_with_the_data():
    """A hundred times more samples than are kept; some of them are skipped."""
    settings = {
        "kept_samples": 20,
        "worst_samples": 4,
        "saliency": SaliencyMap(steps=2),
        "saliency_samples": None,
        "on_error": "skip",
    }
    model, (x, y) = mlp(), data(200)
    x[::40] = torch.nan
    audit = InvarianceAudit(model, CyclicRotation(4), **settings)
    sizes = []
    for _ in range(8):
        for inputs, labels in in_batches(x, y, 50):
            audit.update(inputs, labels)
            tally = audit._tally
            assert sum(len(table) for table in tally._kept) <= 2 * 20 + 50
            assert len(tally.worst) <= 4
            assert len(tally.examples) <= 6
        sizes.append(size_of(audit))
    skipped = size_of(audit) - sizes[0]
    assert audit.report().samples == 8 * 195
    # The list of skipped samples has an entry each, up to a thousand; histograms have a few buckets more.
    assert skipped < 8 * 5 * 1000
    assert sizes[-1] - sizes[-2] < 5 * 1000 + 1000


def test_images_of_the_worst_samples_do_not_hold_their_batches():
    """A view into a batch would keep all of it in memory."""
    model, (x, y) = mlp(), data(200)
    report = measure_invariance(model, [(x, y)], CyclicRotation(4), saliency=SaliencyMap(steps=2))
    tensors = [t for one in report.worst_samples for t in (one.input, one.transformed)]
    tensors += [t for one in report.saliency_examples for t in (one.inputs, one.maps)]
    assert len(tensors) == 20 + 8
    for tensor in tensors:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
