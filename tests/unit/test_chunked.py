"""The chunked losses against the dense ones."""

from typing import Any

import pytest
import torch
from dense_student import look
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from supertiny.train.chunked import chunked_losses
from supertiny.train.losses import TERMS, Taught, divergent, has_teacher
from supertiny.train.objective import Objective

WIDTH, VOCABULARY, KEPT = 6, 19, 4
ALL = Objective(tuple(TERMS))
SCALES = (1.0, 0.7, 3.0)


def random_case(num_tokens: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Taught]:
    """Hidden states, an output embedding and a teacher that kept nothing at position 2 and two tokens at position 3."""
    random = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(num_tokens, WIDTH, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    weight_VD = torch.randn(VOCABULARY, WIDTH, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    teacher = torch.softmax(torch.randn(num_tokens, VOCABULARY, generator=random, dtype=torch.float64) * 2, -1)
    kept_NK, ids_NK = teacher.topk(KEPT)
    kept_NK[2], ids_NK[2] = 0, 0
    kept_NK[3, 2:], ids_NK[3, 2:] = 0, ids_NK[3, 0]
    return hidden_ND, weight_VD, Taught(torch.randint(VOCABULARY, (num_tokens,), generator=random), ids_NK, kept_NK.log())


def dense_sums(hidden_ND: Tensor, weight_VD: Tensor, taught: Taught) -> Tensor:
    logits_NV = hidden_ND @ weight_VD.T
    student = look(logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float(), taught)
    return torch.stack([term(student, taught.teacher_logprobs_NK).sum() for term in TERMS.values()])


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return [gradient.double() for gradient in torch.autograd.grad(loss, of)]


@pytest.mark.parametrize("positions_a_chunk", [1, 3, 11, 100])
def test_sums_and_gradients_are_the_dense_ones_however_the_positions_are_chunked(positions_a_chunk: int) -> None:
    hidden, weight, taught = random_case(11)
    loss, sums = chunked_losses(hidden, weight, taught, ALL, SCALES, positions_a_chunk * VOCABULARY)
    expected = dense_sums(hidden, weight, taught)
    dense_loss = expected @ torch.tensor(SCALES, dtype=torch.float64)
    assert sums.tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert loss.item() == pytest.approx(dense_loss.item(), abs=1e-12)
    for ours, dense in zip(gradients(loss, hidden, weight), gradients(dense_loss, hidden, weight), strict=True):
        torch.testing.assert_close(ours, dense, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", TERMS)
def test_each_terms_gradient_is_that_of_finite_differences(name: str) -> None:
    hidden, weight, taught = random_case(5)
    objective = Objective((name,))
    assert torch.autograd.gradcheck(lambda h, w: chunked_losses(h, w, taught, objective, (0.5,), 2 * VOCABULARY)[0], (hidden, weight))


def test_in_bfloat16_the_error_is_no_larger_than_the_dense_ones() -> None:
    hidden, weight, taught = random_case(200, torch.bfloat16)
    exact = dense_sums(hidden.double(), weight.double(), taught)
    true = gradients(exact @ torch.tensor(SCALES, dtype=torch.float64), hidden, weight)
    dense = dense_sums(hidden, weight, taught)
    loss, sums = chunked_losses(hidden, weight, taught, ALL, SCALES, 16 * VOCABULARY)
    assert sums.tolist() == pytest.approx(dense.tolist(), rel=1e-3)  # equal logits, frequent in bfloat16, may tie in either way
    plain = gradients(dense.float() @ torch.tensor(SCALES), hidden, weight)
    for ours, theirs, exact_one in zip(gradients(loss, hidden, weight), plain, true, strict=True):
        error, dense_error = ((each - exact_one).norm() / exact_one.norm() for each in (ours, theirs))
        assert error < 1.1 * dense_error
        assert error < 0.01


def test_gradients_of_bfloat16_weights_add_up_over_chunks_without_loss() -> None:
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    hidden, weight = one.repeat(1024, 1), torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    taught = Taught(torch.zeros(1024, dtype=torch.long), torch.zeros(1024, 0, dtype=torch.long), torch.zeros(1024, 0))
    loss, _ = chunked_losses(hidden, weight, taught, Objective(("cross_entropy",)), (1.0,), 2)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [-512, 512]  # in bfloat16 a sum of halves stops growing at 128


def test_what_comes_after_the_loss_multiplies_the_gradients() -> None:
    hidden, weight, taught = random_case(5)
    once, thrice = (chunked_losses(hidden, weight, taught, ALL, SCALES)[0] for _ in range(2))
    for tripled, plain in zip(gradients(3 * thrice, hidden, weight), gradients(once, hidden, weight), strict=True):
        torch.testing.assert_close(tripled, 3 * plain)


def test_a_frozen_output_embedding_gets_no_gradient() -> None:
    hidden, weight, taught = random_case(5)
    chunked_losses(hidden, weight.detach(), taught, ALL, SCALES)[0].backward()
    expected = gradients(dense_sums(hidden, weight, taught) @ torch.tensor(SCALES, dtype=torch.float64), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected)


def test_without_gradients_the_sums_are_the_same() -> None:
    hidden, weight, taught = random_case(5)
    with torch.no_grad():
        loss, sums = chunked_losses(hidden, weight, taught, ALL, SCALES)
    assert not loss.requires_grad
    assert sums.tolist() == chunked_losses(hidden, weight, taught, ALL, SCALES)[1].tolist()


@pytest.mark.parametrize("positions_a_chunk", [1, 3, 100])
def test_the_entropy_is_that_of_the_whole_distribution_at_every_position(positions_a_chunk: int) -> None:
    hidden, weight, taught = random_case(11)
    logprobs = torch.log_softmax(hidden @ weight.T, -1).detach()
    expected = -(logprobs.exp() * logprobs).sum().item()
    objective = Objective(tuple(TERMS), 1.0, entropy=True)
    _, sums = chunked_losses(hidden, weight, taught, objective, SCALES, positions_a_chunk * VOCABULARY)
    assert dict(zip(objective.sums, sums.tolist(), strict=True))["entropy"] == pytest.approx(expected, abs=1e-12)


def test_a_distribution_on_few_tokens_has_a_finite_entropy() -> None:
    hidden, weight = torch.tensor([[60.0]]), torch.tensor([[1.0], [1.0], [-1.0], [-100.0]])
    taught = Taught(torch.tensor([0]), torch.tensor([[0]]), torch.zeros(1, 1))
    _, sums = chunked_losses(hidden, weight, taught, Objective(("cross_entropy",), entropy=True), (1.0,))
    assert sums[1].item() == pytest.approx(0.6931472)  # two tokens of one half each


def test_watching_the_entropy_changes_no_gradient() -> None:
    hidden, weight, taught = random_case(11)
    plain, watched = (chunked_losses(hidden, weight, taught, Objective(tuple(TERMS), entropy=on), SCALES)[0] for on in (False, True))
    for ours, theirs in zip(gradients(watched, hidden, weight), gradients(plain, hidden, weight), strict=True):
        assert torch.equal(ours, theirs)


def test_masked_positions_count_for_no_term_and_those_without_teacher_always_count() -> None:
    hidden, weight, taught = random_case(11)
    student = look((hidden @ weight.T).detach(), taught)
    passed = divergent(student, taught.teacher_logprobs_NK, 1.0)
    counted = passed | ~has_teacher(taught.teacher_logprobs_NK)
    assert 0 < passed.sum() < 10
    expected = [float((term(student, taught.teacher_logprobs_NK) * counted).sum()) for term in TERMS.values()]
    loss, sums = chunked_losses(hidden, weight, taught, Objective(tuple(TERMS), 1.0), SCALES, 3 * VOCABULARY)
    assert sums.tolist() == pytest.approx([*expected, float(passed.sum())])
    (gradient,) = gradients(loss, hidden)
    assert (gradient.abs().sum(-1) > 0).tolist() == counted.tolist()


def test_gradients_stay_finite_where_the_student_is_certain_and_the_teacher_has_no_tail() -> None:
    logits = torch.tensor([[80.0, 0.0, 0.0, -80.0]], requires_grad=True)
    taught = Taught(torch.tensor([1]), torch.tensor([[1, 0]]), torch.tensor([[0.0, float("-inf")]]))
    chunked_losses(logits, torch.eye(4), taught, Objective(("forward_kl",)), (1.0,))[0].backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([1, -1, 0, 0])


def test_gradients_stay_finite_where_the_teacher_has_a_tail_that_the_student_rules_out() -> None:
    logits = torch.tensor([[300.0, -300.0, -300.0]], requires_grad=True)
    taught = Taught(torch.tensor([0]), torch.tensor([[0]]), torch.tensor([[0.5]]).log())
    loss, _ = chunked_losses(logits, torch.eye(3), taught, Objective(("forward_kl",)), (1.0,))
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * 600, rel=0.01)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([0.5, -0.25, -0.25])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_sums_and_gradients_are_the_cpus() -> None:
    hidden, weight, taught = random_case(11)
    loss, sums = chunked_losses(hidden, weight, taught, ALL, SCALES, 3 * VOCABULARY)
    there = Taught(taught.targets_N.cuda(), taught.teacher_ids_NK.cuda(), taught.teacher_logprobs_NK.cuda())
    gpu_loss, gpu_sums = chunked_losses(hidden.cuda(), weight.cuda(), there, ALL, SCALES, 3 * VOCABULARY)
    assert gpu_sums.tolist() == pytest.approx(sums.tolist(), abs=1e-12)
    for gpu, cpu in zip(gradients(gpu_loss, hidden, weight), gradients(loss, hidden, weight), strict=True):
        torch.testing.assert_close(gpu, cpu, atol=1e-12, rtol=1e-10)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result


@pytest.mark.parametrize("num_tokens", [64, 512])
def test_no_tensor_is_larger_than_a_chunks_logits_however_many_tokens_there_are(num_tokens: int) -> None:
    hidden, weight, taught = random_case(num_tokens)
    vocabulary = 100 * VOCABULARY
    with LargestTensor() as largest:
        loss, _ = chunked_losses(hidden, weight.repeat(100, 1), taught, ALL, SCALES, 8 * vocabulary)
        loss.backward()
    assert largest.numbers == 8 * vocabulary
