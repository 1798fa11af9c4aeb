"""Losses against coral-pytorch, torch's own, finite differences, and what their definitions promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coral_pytorch.losses import corn_loss
from scipy.optimize import minimize
from torch import Tensor

from darl_rerank.training.losses.comparison import (
    LOSSES,
    corn_conditionals,
    corn_log_probabilities,
    emd,
    label_smoothing,
    sord,
)
from darl_rerank.training.losses.occ import (
    Loss,
    cross_entropy,
    log_complement,
    occ,
    overconfidence,
    pairwise_rank,
    ranked_probability_score,
)

ALL: dict[str, Loss] = {**LOSSES, "rps": ranked_probability_score, "over": overconfidence, "rank": pairwise_rank}


def example(n: int = 12, grades: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float64, grades of all kinds, and queries of 4 pairs each."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, grades, dtype=torch.float64, generator=generator)
    return logits, torch.randint(grades, (n,), generator=generator), torch.arange(n) // 4


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("soft", [False, True])
def test_gradients_are_those_of_finite_differences(name: str, soft: bool) -> None:
    logits, targets, queries = example()
    soft_labels = torch.rand(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(1)
    labels = soft_labels if soft else targets
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: ALL[name](z, labels, queries=queries), logits, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_gradients_exist_and_are_finite_at_huge_logits(name: str) -> None:
    for scale in (1e2, 1e4):
        logits = scale * torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [0, 0, 0]])
        for grade in range(3):
            z = logits.clone().requires_grad_(True)
            targets = torch.tensor([grade, 0, grade, 1, 2])
            value = ALL[name](z, targets, queries=torch.zeros(5, dtype=torch.long))
            value.backward()
            assert z.grad is not None
            assert torch.isfinite(value), (name, scale, grade)
            assert torch.isfinite(z.grad).all(), (name, scale, grade)


def test_huge_logits_still_cost_what_they_are_wrong_by() -> None:
    z = torch.tensor([[-1e4, 1e4]])
    assert cross_entropy(z, torch.tensor([0])).item() == pytest.approx(2e4)
    assert overconfidence(z, torch.tensor([0])).item() == pytest.approx(2e4)
    assert ranked_probability_score(z, torch.tensor([0])).item() == pytest.approx(1)


def test_cross_entropy_and_label_smoothing_are_torchs() -> None:
    logits, targets, _ = example(64)
    torch.testing.assert_close(cross_entropy(logits, targets), torch.nn.functional.cross_entropy(logits, targets))
    for smoothing in (0.0, 0.1, 0.5):
        expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        torch.testing.assert_close(label_smoothing(logits, targets, smoothing=smoothing), expected)


@pytest.mark.parametrize("grades", [2, 3, 4, 6])
def test_corn_is_coral_pytorchs(grades: int) -> None:
    logits, targets, _ = example(200, grades)
    cases = sum(int((targets > task - 1).sum()) for task in range(grades - 1))
    # Theirs divides by the cases of all tasks, ours by the examples.
    theirs = corn_loss(corn_conditionals(logits), targets, num_classes=grades) * cases / len(targets)
    torch.testing.assert_close(LOSSES["corn"](logits, targets), theirs)


def test_corn_probabilities_are_products_of_conditionals() -> None:
    logits, _, _ = example(50)
    reached = torch.sigmoid(corn_conditionals(logits)).cumprod(1)
    p = corn_log_probabilities(logits).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(50, dtype=torch.float64))
    # P(y > j) is what coral-pytorch's corn_label_from_logits counts above one half.
    torch.testing.assert_close(p.flip(1).cumsum(1).flip(1)[:, 1:], reached)


def test_ranked_probability_score_by_hand() -> None:
    p = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    for grade, expected in ((0, 0.8**2 + 0.3**2), (1, 0.2**2 + 0.3**2), (2, 0.2**2 + 0.7**2)):
        found = ranked_probability_score(p.log(), torch.tensor([grade]))
        assert found.item() == pytest.approx(expected, abs=1e-12)


def test_emd_of_one_hot_labels_is_the_squared_earth_movers_distance() -> None:
    logits, targets, _ = example(30)
    p, truth = logits.softmax(1), torch.nn.functional.one_hot(targets, 4).double()
    expected = (p.cumsum(1) - truth.cumsum(1)).square().sum(1).mean()
    torch.testing.assert_close(emd(logits, targets), expected)


def test_sord_by_hand() -> None:
    logits, targets, _ = example(20)
    soft = np.exp(-np.square(np.arange(4)[None] - targets.numpy()[:, None]))
    soft /= soft.sum(1, keepdims=True)
    expected = -(torch.from_numpy(soft) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(sord(logits, targets), expected)


def test_log_complement_where_the_plain_form_still_works() -> None:
    logits, _, _ = example(40)
    torch.testing.assert_close(log_complement(logits), torch.log1p(-logits.softmax(1)))


def test_rank_by_loops() -> None:
    logits, targets, queries = example()
    gains, margin = torch.tensor([0.0, 1, 3, 7], dtype=torch.float64), 0.5
    scores = logits.softmax(1) @ gains
    total = 0.0
    for query in queries.unique():
        costs = [
            np.log1p(np.exp(float(margin * (gains[targets[i]] - gains[targets[j]]) - (scores[i] - scores[j]))))
            for i in range(12)
            for j in range(12)
            if queries[i] == queries[j] == query and targets[i] > targets[j]
        ]
        total += 4 * float(np.mean(costs)) if costs else 0.0
    found = pairwise_rank(logits, targets, queries=queries, gains=gains, margin=margin)
    assert found.item() == pytest.approx(total / 12)


def test_rank_of_soft_labels_counts_a_gap_below_one_grade_by_its_size() -> None:
    logits, _, queries = example()
    gains, margin = torch.tensor([0.0, 1, 3, 7], dtype=torch.float64), 0.5
    generator = torch.Generator().manual_seed(0)
    targets = (3 * torch.randn(12, 4, generator=generator, dtype=torch.float64)).softmax(1)
    scores, truth = logits.softmax(1) @ gains, targets @ gains
    total = 0.0
    small = 0
    for query in queries.unique():
        costs = []
        for i in range(12):
            for j in range(12):
                gap = float(truth[i] - truth[j])
                if queries[i] == queries[j] == query and gap > 0:
                    small += gap < 1
                    costs.append(min(1, gap) * np.log1p(np.exp(margin * gap - float(scores[i] - scores[j]))))
        total += int((queries == query).sum()) * float(np.mean(costs)) if costs else 0.0
    assert small > 2
    found = pairwise_rank(logits, targets, queries=queries, gains=gains, margin=margin)
    assert found.item() == pytest.approx(total / 12)


def optimum(loss: Loss, truth: np.ndarray) -> np.ndarray:
    """The distribution that minimises the expected loss when the grade is drawn from `truth`."""
    weights = torch.from_numpy(truth)

    def expected(x: np.ndarray) -> tuple[float, np.ndarray]:
        z = torch.tensor(x, requires_grad=True)
        rows = z.expand(len(truth), -1)
        value = (weights * loss(rows, torch.arange(len(truth)), reduction="none")).sum()
        value.backward()
        assert z.grad is not None
        return float(value.detach()), z.grad.numpy()

    found = minimize(expected, np.zeros(len(truth)), jac=True, method="BFGS", options={"gtol": 1e-9})
    return np.asarray(torch.from_numpy(found.x).softmax(0))


TRUTHS = [np.array(p) for p in ([0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.45, 0.1, 0.45], [0.3, 0.25, 0.2, 0.25])]


@pytest.mark.parametrize("truth", TRUTHS, ids=str)
def test_cross_entropy_and_ranked_probability_score_are_proper(truth: np.ndarray) -> None:
    def both(logits: Tensor, targets: Tensor, **options: object) -> Tensor:
        options = {"reduction": "none"}
        return cross_entropy(logits, targets, **options) + ranked_probability_score(logits, targets, **options)  # type: ignore[arg-type]

    for loss in (cross_entropy, ranked_probability_score, both):
        np.testing.assert_allclose(optimum(loss, truth), truth, atol=1e-4)


@pytest.mark.parametrize("truth", TRUTHS, ids=str)
def test_the_losses_said_not_to_be_proper_are_not(truth: np.ndarray) -> None:
    """What the docstrings say: label smoothing and SORD move the optimum; OVER moves it down."""
    # Smoothing by 0.1 has its optimum at 0.9 · truth + 0.1 / K: how far that lies from the truth depends on the truth.
    np.testing.assert_allclose(optimum(label_smoothing, truth), 0.9 * truth + 0.1 / len(truth), atol=1e-4)
    assert np.abs(optimum(sord, truth) - truth).max() > 0.01

    def with_over(logits: Tensor, targets: Tensor, **options: object) -> Tensor:
        return cross_entropy(logits, targets, reduction="none") + overconfidence(logits, targets, reduction="none")

    grades = np.arange(len(truth))
    assert optimum(with_over, truth) @ grades < truth @ grades - 0.01


def test_occ_is_the_sum_of_its_terms() -> None:
    logits, targets, queries = example()
    expected = (
        cross_entropy(logits, targets)
        + ranked_probability_score(logits, targets)
        + 0.1 * overconfidence(logits, targets)
        + 0.25 * pairwise_rank(logits, targets, queries=queries)
    )
    torch.testing.assert_close(occ(logits, targets, queries=queries), expected)


def test_the_command_line_knows_every_loss() -> None:
    from darl_rerank.cli.train import _LOSSES

    assert set(_LOSSES) == set(LOSSES)
