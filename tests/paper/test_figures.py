"""The figures' numbers against small closed forms, and the pictures drawn from made-up results."""

import copy
import json
import math
import statistics

import pytest
import torch
from torch import nn

from examples.paper import drift, embedding, gradient_flow, jacobian, saliency_orbits
from invreg import CyclicRotation, Estimate, GroupPooling

R4 = CyclicRotation(4)


def linear(weight):
    """A model whose logits are a fixed linear map of the pixels."""
    return lambda x: x.flatten(1) @ weight.to(x).T


def texts(figure):
    """All that is written in a picture."""
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def written(figure, path):
    """The picture as pixels, once it could be written."""
    from matplotlib.image import imread

    figure.savefig(path)
    return imread(path)


def plain(result):
    """The result as it comes back from JSON; numbers that are not finite are no JSON."""
    return json.loads(json.dumps(result, allow_nan=False))


# Figures 1 and 3


class TestSaliencyOrbits:
    @pytest.fixture
    def orbits(self):
        """A model that looks at one pixel wherever it is, and one whose logits are the same on the whole orbit."""
        corner, centre = torch.zeros(2, 36), torch.zeros(2, 36)
        corner[:, 0] = 1
        centre[:, [14, 15, 20, 21]] = 1
        models = {"DA": linear(corner), "IR": linear(centre), "WT": linear(centre)}
        images = torch.rand(5, 1, 6, 6) + 1
        return saliency_orbits.compute(models, images, torch.tensor([0, 1, 0, 1, 1]), R4)

    def test_maps_of_a_model_with_one_pixel_do_not_meet(self, orbits):
        """Moved back, the corner's map is at another corner each time; blurring wraps around, so corners overlap."""
        weight = math.exp(-1 / 2)
        line = torch.tensor([1.0, weight, 0.0, 0.0, 0.0, weight])
        a, b = (line.roll(shift) for shift in (0, -1))  # a blurred corner, the first and the last of a line
        along = (a @ b / (a @ a)).item()
        assert orbits["methods"]["DA"]["similarities"] == pytest.approx([1, along, along**2, along], abs=1e-5)
        assert orbits["methods"]["DA"]["mean similarity"] == pytest.approx((2 * along + along**2) / 3, abs=1e-5)

    def test_maps_are_moved_back(self):
        """A model that weighs each pixel by its value sees the same pixels wherever they are."""
        image = torch.zeros(1, 1, 6, 6)
        image[0, 0, 1, 2] = 1
        maps = saliency_orbits.realigned_maps(
            lambda x: x.square().sum((1, 2, 3))[:, None], image, torch.tensor([0]), R4
        )
        torch.testing.assert_close(maps, maps[:1].expand_as(maps))
        assert maps[0].argmax() == 8

    def test_typical_image_is_nearest_to_the_mean(self, monkeypatch):
        similarities = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.6, 1.0]])
        values = iter([torch.ones(3), *[similarities[0]] * 3, torch.ones(3), *[similarities[1]] * 3])
        monkeypatch.setattr(saliency_orbits, "saliency_similarity", lambda *_: next(values))
        models = {name: linear(torch.ones(2, 36)) for name in ("DA", "IR")}
        result = saliency_orbits.compute(models, torch.rand(3, 1, 6, 6), torch.tensor([0, 1, 1]), R4)
        assert (result["image"], result["label"]) == (1, 1)
        assert result["methods"]["IR"]["similarities"] == pytest.approx([1, 0.6, 0.6, 0.6])

    def test_pictures_survive_packing(self):
        picture = torch.tensor([[0.0, 1.0, 2.0], [4.0, 3.0, 0.02]])
        torch.testing.assert_close(
            saliency_orbits.unpacked(saliency_orbits.packed(picture)), picture / 4, atol=1 / 509, rtol=0
        )
        assert saliency_orbits.packed(torch.zeros(1, 2)) == ["0000"]

    @pytest.mark.parametrize("group", ["R4", "T3"])
    def test_draws_a_row_for_each_model(self, orbits, group, tmp_path):
        elements = saliency_orbits.ELEMENTS[group]
        figure = saliency_orbits.draw(plain(orbits), saliency_orbits.GROUPS[group], elements)
        assert len(figure.axes) == 4 * len(elements)
        assert all(word in texts(figure) for word in ("DA", "IR", "WT", *elements))
        assert written(figure, tmp_path / "a.png").shape[0] > 300

    def test_check_bites(self):
        def made(da, ir, wt):
            return {
                "methods": {
                    name: {"mean similarity": si} for name, si in zip(("DA", "IR", "WT"), (da, ir, wt), strict=True)
                }
            }

        saliency_orbits.check(made(0.2, 0.95, 1.0))
        with pytest.raises(AssertionError, match="weight-tying"):
            saliency_orbits.check(made(0.2, 0.95, 0.9))
        with pytest.raises(AssertionError, match="regulariser"):
            saliency_orbits.check(made(0.9, 0.95, 1.0))


# Figure 2


@pytest.fixture(scope="module")
def mapped():
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.randn(60, 1, 3, 3, generator=rng), torch.arange(60) % 3
    models = {
        "DA": lambda x: x.flatten(1),
        "IR": lambda x: x.flatten(1) + 20 * x.mean((1, 2, 3))[:, None],
    }
    return embedding.compute(models, images, labels, R4)


class TestEmbedding:
    def test_distances(self):
        """Turning moves each image by 2 and 4; the pairs of the classes lie 6 and 1 apart."""
        first = torch.tensor([[0.0, 0.0], [6.0, 0.0], [50.0, 0.0], [51.0, 0.0]])
        away = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [2.0, 0.0]])
        orbits = torch.stack([first, first + away, first + 2 * away])
        found = embedding.distances(orbits, torch.tensor([0, 0, 7, 7]))
        assert found == pytest.approx({"within orbits": 3, "within classes": 3.5, "ratio": 3 / 3.5, "nearer": 0.5})

    def test_features_are_those_before_the_last_layer(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        x = torch.randn(5, 1, 2, 2)
        torch.testing.assert_close(model[-1](embedding.features_of(model)(x)), model(x))
        with pytest.raises(AssertionError, match="Linear"):
            embedding.features_of(nn.Linear(2, 2))

    def test_the_invariant_part_keeps_orbits_together(self, mapped):
        methods = mapped["methods"]
        assert methods["IR"]["within orbits"] == pytest.approx(methods["DA"]["within orbits"], rel=1e-4)
        assert methods["IR"]["ratio"] < methods["DA"]["ratio"] / 2
        embedding.check(mapped)

    def test_map_has_the_orbit_and_all_others(self, mapped):
        assert len(mapped["labels"]) == 59
        for method in mapped["methods"].values():
            assert len(method["orbit"]) == 4
            assert len(method["others"]["x"]) == len(method["others"]["y"]) == 59

    def test_maps_each_image_under_its_own_turn(self, monkeypatch):
        """Rows that t-SNE gets: the orbit of the traced image, then each other image under the element drawn for it."""
        seen = []
        monkeypatch.setattr(embedding, "embed", lambda rows: seen.append(rows) or rows[:, :2])
        images, labels = torch.arange(32.0).view(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64)
        result = embedding.compute({"DA": lambda x: x.flatten(1)}, images, labels, R4)
        elements = R4.sample(8, torch.Generator().manual_seed(embedding.SEED))
        expected = [R4.orbit(images[result["image"]][None]).flatten(1)]
        expected += [R4.act(elements[n], images[n][None]).flatten(1) for n in range(8) if n != result["image"]]
        torch.testing.assert_close(seen[0], torch.cat(expected))

    def test_repeats_itself(self):
        features = torch.randn(40, 5)
        assert torch.equal(embedding.embed(features), embedding.embed(features))

    def test_draws_a_panel_for_each_model(self, mapped, tmp_path):
        figure = embedding.draw(plain(mapped))
        assert len(figure.axes) == 2
        traced = [line for axis in figure.axes for line in axis.get_lines() if len(line.get_xdata()) == 5]
        assert len(traced) == 2
        assert f"{mapped['methods']['DA']['ratio']:.2f} times" in texts(figure)
        written(figure, tmp_path / "a.png")

    def test_check_bites(self, mapped):
        worse = copy.deepcopy(mapped)
        worse["methods"]["IR"]["ratio"] = 1.1 * worse["methods"]["DA"]["ratio"]
        with pytest.raises(AssertionError, match="together"):
            embedding.check(worse)


# Figure 4


class TestDrift:
    @pytest.fixture
    def result(self):
        """A model that is right where the left half is brighter; blended with its mirror image it is undecided."""
        images = torch.zeros(6, 1, 2, 2)
        images[:, :, :, 0] = 3
        half = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
        models = {"DA": linear(half), "WT": GroupPooling(linear(half), R4)}
        return drift.compute(models, (images, torch.zeros(6, dtype=torch.int64)), images.flip(-1), R4, (0.0, 0.25, 1.0))

    def test_distribution_error_of_a_blend(self, result):
        """Logits differ by 6 (1 - 2 beta) upright, by its negative half a turn away, by nothing a quarter turn away."""

        def divergence(p, q):
            return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

        for beta, found in zip(result["betas"], result["methods"]["DA"]["distribution error"]["mean"], strict=True):
            p = 1 / (1 + math.exp(-6 * (1 - 2 * beta)))
            expected = (2 * divergence(p, 0.5) + divergence(p, 1 - p)) / 3
            assert found == pytest.approx(expected, rel=1e-5), beta

    def test_accuracy_and_its_ratio(self, result):
        """Undecided a quarter turn away, where the first class wins: right in 3 of 4; wholly drifted too."""
        method = result["methods"]["DA"]
        assert method["accuracy"]["mean"] == pytest.approx([0.75, 0.75, 0.75])
        assert method["accuracy ratio"]["mean"] == pytest.approx([1, 1, 1])
        assert method["accuracy ratio"]["standard error"] == pytest.approx([0, 0, 0])

    def test_images_without_partner_are_left_out(self):
        images, labels = torch.rand(7, 1, 2, 2), torch.zeros(7, dtype=torch.int64)
        model = {"DA": linear(torch.ones(2, 4))}
        assert drift.compute(model, (images, labels), images[:4], R4, (0.0, 1.0))["images"] == 4

    def test_what_is_not_known_is_none(self):
        assert drift.told([Estimate(0.5, 0.1, 4), None]) == {"mean": [0.5, None], "standard error": [0.1, None]}

    def test_draws_two_panels_for_each_group(self, result, tmp_path):
        result["methods"]["DA"]["accuracy ratio"] = {"mean": [None] * 3, "standard error": [None] * 3}
        figure = drift.draw(plain({"R4": result, "T3": result}))
        assert [axis.get_title() for axis in figure.axes] == ["R4", "R4", "T3", "T3"]
        assert [len(axis.containers) for axis in figure.axes] == [2, 1, 2, 1], "a curve for each model that has values"
        written(figure, tmp_path / "a.png")

    def test_check_bites(self):
        def made(da, ir, wt):
            errors = {"DA": da, "IR": ir, "WT": wt}
            methods = {name: {"distribution error": {"mean": each}} for name, each in errors.items()}
            return {"betas": [0.0, 1.0], "methods": methods}

        drift.check(made([0.3, 2.0], [0.01, 0.1], [0.0, 0.0]))
        with pytest.raises(AssertionError, match="weight-tying"):
            drift.check(made([0.3, 2.0], [0.01, 0.1], [0.0, 0.1]))
        with pytest.raises(AssertionError, match=r"β = 1\.0"):
            drift.check(made([0.3, 2.0], [0.01, 2.1], [0.0, 0.0]))


# Figure 5


class TestJacobian:
    def test_of_squares(self):
        """The Jacobian of x^2 is diagonal, with 2 |x|: the quantiles are those of twice the largest entry."""
        peak = torch.arange(1.0, 502.0).square()
        images = torch.stack([peak, torch.zeros_like(peak)], 1)[:, None, None, :]
        found = jacobian.compute({"DA": lambda x: x.flatten(1).square()}, images)["DA"]
        assert found["mean"] == pytest.approx(502 * 1003 / 3)
        expected = {"0.05": 26, "0.25": 126, "0.5": 251, "0.75": 376, "0.95": 476}
        assert found["quantiles"] == pytest.approx({q: 2 * k**2 for q, k in expected.items()})
        deviation = statistics.stdev(2 * k**2 for k in range(1, 502))
        assert found["standard error"] == pytest.approx(deviation / math.sqrt(501))

    @pytest.fixture
    def results(self):
        images = torch.randn(30, 1, 2, 2)
        models = {
            name: (lambda x, k=k: k * x.flatten(1).square()) for k, name in enumerate(("DA", *jacobian.LOSSES), 1)
        }
        found = jacobian.compute(models, images)
        found = {name: {**one, "weight": 1.0, "SI": 0.95, "accuracy": 0.881} for name, one in found.items()}
        return {group: {"images": 30, "models": found} for group in ("R4", "T3")}

    def test_draws_a_panel_for_each_group(self, results, tmp_path):
        figure = jacobian.draw(plain(results))
        assert [axis.get_title() for axis in figure.axes] == ["R4", "T3"]
        for axis in figure.axes:
            assert axis.get_yscale() == "log"
            labels = [label.get_text() for label in axis.get_xticklabels()]
            assert labels[0] == "DA\nSI 0.95\nacc 88.1 %"
            assert len(labels) == 4
        written(figure, tmp_path / "a.png")

    def test_check_bites(self, results):
        models = results["R4"]["models"]
        with pytest.raises(AssertionError, match="L2: a regularised model must react less"):
            jacobian.check(results["R4"])
        models["DA"]["mean"] = 100.0
        jacobian.check(results["R4"])
        models["normalised L2"] |= {"mean": 200.0, "SI": 0.8}  # which is not invariant, and so need not react less
        jacobian.check(results["R4"])
        for name in jacobian.LOSSES:
            models[name]["SI"] = 0.8
        with pytest.raises(AssertionError, match="a regulariser must make a model invariant"):
            jacobian.check(results["R4"])


# Proposition 3.1


@pytest.fixture(scope="module")
def flow():
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(12, 1, 4, 4, generator=rng, dtype=torch.float64)
    return gradient_flow.compute(images, torch.randn(3, 16, generator=rng, dtype=torch.float64))


class TestGradientFlow:
    def test_gradient_is_the_weight_times_the_scatter(self):
        """By loops, so that the half and the means are right."""
        images, weight = torch.randn(5, 1, 3, 3, dtype=torch.float64), torch.randn(2, 9, dtype=torch.float64)
        expected = torch.zeros(9, 9, dtype=torch.float64)
        for image in images:
            for g in (1, 2, 3):
                e = (image - image.rot90(g, (-2, -1))).flatten()
                expected += torch.outer(e, e) / 15
        torch.testing.assert_close(gradient_flow.scatter(images, R4), expected)
        torch.testing.assert_close(gradient_flow.gradient_of_error(images, R4)(weight), weight @ expected)

    def test_closed_form_is_the_matrix_exponential(self):
        root, weight = torch.randn(6, 4, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
        s = root @ root.T
        expected = weight @ torch.linalg.matrix_exp(-0.3 * s)
        torch.testing.assert_close(gradient_flow.closed_form(weight, s, 0.3), expected)

    @pytest.mark.parametrize("name", gradient_flow.METHODS)
    def test_integrates_to_its_order(self, name):
        """Of a flow to zero, with the steps 1/8 and 1/16."""
        advance, order = gradient_flow.METHODS[name]
        start = torch.ones(1, 1, dtype=torch.float64)
        wrong = []
        for step in (1 / 8, 1 / 16):
            (end,) = gradient_flow.follow(start, lambda weight: weight, advance, step, [2.0])
            wrong.append(abs(end.item() - math.exp(-2)))
        assert math.log2(wrong[0] / wrong[1]) == pytest.approx(order, abs=0.2)

    def test_follows_the_closed_form(self, flow):
        gradient_flow.check(flow)
        assert flow["followed"]["Runge-Kutta"]["differences"]["0.05"] < 1e-7

    def test_the_invariant_part_remains(self, flow):
        """Of 16 pixels under turns, 4 orbits are left: the average over each."""
        assert flow["rank of S"] == 12
        weight = torch.randn(3, 16, dtype=torch.float64)
        averaged = R4.orbit(weight.view(3, 1, 4, 4)).mean(0).flatten(1)
        images = torch.randn(2, 1, 4, 4, dtype=torch.float64)
        torch.testing.assert_close(gradient_flow.symmetrized(weight, images, R4), averaged)

    def test_draws_both_panels(self, flow, tmp_path):
        figure = gradient_flow.draw(plain(flow))
        assert len(figure.axes) == 2
        assert all(word in texts(figure) for word in ("symmetrised", "Runge-Kutta", "gradient descent", "order 4"))
        written(figure, tmp_path / "a.png")

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("largest singular values", 5), 100.0, "never grow"),
            (("followed", "Runge-Kutta", "largest singular values", 0), 100.0, "never grow"),
            (("of the symmetrised weight",), 0.1, "what remains"),
            (("distance to the symmetrised weight", -1), 0.1, "what remains"),
            (("followed", "Runge-Kutta", "differences", "0.05"), 0.001, "must follow"),
            (("followed", "Runge-Kutta", "differences", "0.2"), 1.0, "times closer"),
        ],
    )
    def test_check_bites(self, flow, path, value, message):
        broken = copy.deepcopy(flow)
        at = broken
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        with pytest.raises(AssertionError, match=message):
            gradient_flow.check(broken)
