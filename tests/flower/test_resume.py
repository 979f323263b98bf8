"""A server that stops goes on with the same account: nothing is spent twice, nothing that was computed is lost."""

from __future__ import annotations

import pytest

pytest.importorskip("flwr", reason="needs the package flwr (make test-flower)")

from flower.toys import head, inner, make_app, play, wrapped
from flwr.serverapp import strategy as flower

from krossfuse.core.errors import DataError
from krossfuse.privacy import make_mechanism

CEPAM = make_mechanism("cepam", sigma=0.5)


class StoppedError(Exception):
    """The server's end."""


def stopping(after):
    """Return a delivery during whose round the server dies."""

    def deliver(reply):
        if reply.metadata.message_type == "train":
            deliver.count += 1
            if deliver.count > after:
                raise StoppedError
        return [reply]

    deliver.count = 0
    return deliver


@pytest.mark.parametrize("kind", [flower.FedAvg, flower.FedAvgM, flower.FedAdam])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(kind, tmp_path):
    options = {"server_momentum": 0.5} if kind is flower.FedAvgM else {}

    def make(**extra):
        return wrapped(CEPAM, strategy=inner(kind, **options), budgets=5.0, extra=extra)

    whole = make()
    expected = play(whole, 6)
    file = tmp_path / "run.safetensors"
    with pytest.raises(StoppedError):
        play(make(checkpoint=file), 6, deliver=stopping(after=17))  # inside round 4
    seen = []
    resumed = make(checkpoint=file)
    assert resumed.rounds_done == 3
    result = play(resumed, 6, app=make_app(seen=seen))
    assert {round for _, round, _ in seen} == {3, 4, 5}
    assert (head(result) == head(expected)).all()
    assert resumed.account.epsilons() == whole.account.epsilons()
    assert resumed.total_bits == whole.total_bits
    assert resumed.history == whole.history
    seen.clear()
    again = make(checkpoint=file)
    result = play(again, 6, app=make_app(seen=seen))  # it is done: nobody is asked, nothing is spent
    assert not seen
    assert (head(result) == head(expected)).all()
    assert again.account.epsilons() == whole.account.epsilons()


def test_spent_budgets_stay_spent(tmp_path):
    file = tmp_path / "run.safetensors"
    strategy = wrapped(CEPAM, budgets=3.0, extra={"checkpoint": file})
    play(strategy, 40)
    spent = strategy.account.epsilons()
    assert strategy.finished
    assert 0 < max(spent) <= 3.0
    seen = []
    again = wrapped(CEPAM, budgets=3.0, extra={"checkpoint": file, "secret": None})
    play(again, 400, app=make_app(seen=seen))
    assert not seen
    assert again.account.epsilons() == spent


def test_a_round_without_a_usable_message_is_kept(tmp_path):
    file = tmp_path / "run.safetensors"

    def change(after, client, round):
        return {"head": after["head"] * (float("nan") if round == 2 else 1.0)}

    with pytest.raises(DataError, match="round 3: none of 5"):
        play(wrapped(CEPAM, extra={"checkpoint": file}), 4, app=make_app(change=change))
    resumed = wrapped(CEPAM, extra={"checkpoint": file})
    assert [record["received"] for record in resumed.history] == [5, 5, 0]
    reference = wrapped(CEPAM)
    play(reference, 2)
    assert resumed.account.epsilons() == reference.account.epsilons()


@pytest.mark.parametrize(
    "other", [{"budgets": 9.0}, {"clip": 1.0}, {"strategy": inner(flower.FedAdam)}, {"clients": 4}]
)
def test_another_federation_does_not_go_on_from_it(other, tmp_path):
    file = tmp_path / "run.safetensors"
    play(wrapped(CEPAM, budgets=3.0, extra={"checkpoint": file}), 1)
    with pytest.raises(DataError, match="other settings"):
        wrapped(CEPAM, **{"budgets": 3.0, **other}, extra={"checkpoint": file})


def test_the_checkpoint_holds_no_secret(tmp_path):
    from flower.toys import SECRET, message_key

    file = tmp_path / "run.safetensors"
    play(wrapped(CEPAM, extra={"checkpoint": file}), 1)
    content = file.read_bytes()
    assert SECRET not in content
    assert message_key(0, 0).secret not in content
