"""Does one line regularise a model of transformers, whose loss is computed inside its own forward?"""

import copy

import pytest
import torch

from invreg import CyclicRotation, L2InvarianceLoss, regularize
from tests.integration.plain_loop import RATE, distance, labelled_batches, parameters

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
pytest.importorskip("accelerate", reason="the Trainer needs accelerate: pip install accelerate")

WEIGHT = 0.5
SIZE = 4
turns = CyclicRotation(4)
invariance = L2InvarianceLoss(turns)


def network():
    """A small vision transformer with random weights and, by default, no dropout."""
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_labels=5,
        initializer_range=0.3,
    )
    return transformers.ViTForImageClassification(config).double()


def samples(count, labels="labels"):
    """A data set as the Trainer takes it. Its collator puts what is named ``label`` before all else."""
    ((x, y),) = labelled_batches(count, shape=(3, 8, 8))
    return [{"pixel_values": one, labels: label} for one, label in zip(x, y.tolist(), strict=True)]


def in_order(train_dataset, *arguments, **settings):
    """A Trainer that does not shuffle."""

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *arguments):
            return torch.utils.data.SequentialSampler(train_dataset)

    return InOrder(*arguments, train_dataset=train_dataset, **settings)


def trainer(model, data, folder, **settings):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        num_train_epochs=1,
        per_device_train_batch_size=SIZE,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        **settings,
    )
    return in_order(data, model, arguments, eval_dataset=data)


def expected(data, regulariser=invariance, accumulate=1):
    """The explicit line, in a plain loop: each window of batches is the mean over its samples."""
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    x = torch.stack([one["pixel_values"] for one in data])
    y = torch.tensor([one.get("labels", one.get("label")) for one in data])
    batches = list(zip(x.split(SIZE), y.split(SIZE), strict=True))
    for start in range(0, len(batches), accumulate):
        window = batches[start : start + accumulate]
        for pixel_values, labels in window:
            returned = model(pixel_values=pixel_values, labels=labels)
            loss = returned.loss * len(labels) / sum(len(y) for _, y in window)
            if regulariser is not None:
                penalty = regulariser(lambda v: model(pixel_values=v).logits, pixel_values, returned.logits)
                loss = loss + WEIGHT * penalty / len(window)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return parameters(model)


@pytest.mark.parametrize(("labels", "inputs"), [("labels", None), ("label", "pixel_values")])
def test_is_the_training_that_of_the_explicit_line(labels, inputs, tmp_path):
    data, model = samples(10, labels), network()
    handle = regularize(model, invariance, WEIGHT, inputs=inputs)
    trainer(model, data, tmp_path).train()
    found = parameters(model)
    assert distance(found, expected(data)) < 1e-10
    assert distance(found, expected(data, None)) > 1e-3
    assert handle.value > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [16, 20])
def test_does_the_penalty_follow_accumulated_gradients(count, tmp_path):
    data, found = samples(count), []  # of 20 samples the last window has one batch, and is divided by one
    for scaled in (True, False):
        model = network()
        training = trainer(model, data, tmp_path, gradient_accumulation_steps=2)
        loss_scale = (lambda training=training: 1 / training.current_gradient_accumulation_steps) if scaled else 1.0
        regularize(model, invariance, WEIGHT, loss_scale=loss_scale)
        training.train()
        found.append(parameters(model))
    assert distance(found[0], expected(data, accumulate=2)) < 1e-10
    assert distance(found[1], expected(data, accumulate=2)) > 1e-3


def test_is_the_evaluation_untouched(tmp_path):
    data, model = samples(10), network()
    plain = trainer(copy.deepcopy(model), data, tmp_path).evaluate()
    handle = regularize(model, invariance, WEIGHT)
    regularised = trainer(model, data, tmp_path)
    found = regularised.evaluate()
    assert found["eval_loss"] == plain["eval_loss"]
    assert handle.value is None
    predicted = regularised.predict(data).predictions
    with torch.no_grad():
        logits = model.eval()(torch.stack([one["pixel_values"] for one in data])).logits
    assert distance({"logits": torch.from_numpy(predicted)}, {"logits": logits}) < 1e-12


def test_does_the_reported_loss_stay_that_of_the_task(tmp_path):
    data, model = samples(10), network()
    regularize(model, invariance, WEIGHT)
    first = trainer(model, data, tmp_path, max_steps=1).train()
    labels = torch.tensor([one["labels"] for one in data[:SIZE]])
    task = network()(torch.stack([one["pixel_values"] for one in data[:SIZE]]), labels=labels).loss.item()
    assert first.training_loss == pytest.approx(task, rel=1e-6)
