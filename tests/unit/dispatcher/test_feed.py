"""What a node is told, in which order: virtual time, no sockets."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher.feed import (
    BATCH_PAUSE,
    BATCH_SIZE,
    SETTLE,
    WITHDRAWAL_WAIT,
    Batch,
    BatchKind,
    Feed,
    load_balancers,
)
from swarm.model import (
    Network,
    NetworkAttachment,
    Node,
    Task,
    TaskState,
    TaskStatus,
)

NODE = "node"


def task(
    name: str,
    *,
    network: str = "",
    state: TaskState = TaskState.ASSIGNED,
    desired: TaskState = TaskState.RUNNING,
    node: str = NODE,
) -> Task:
    networks = (
        (NetworkAttachment(network=Network(id=network), addresses=("10.0.1.2/24",)),)
        if network
        else ()
    )
    return Task(
        id=name,
        node_id=node,
        status=TaskStatus(state=state),
        desired_state=desired,
        networks=networks,
    )


def node(addresses: Mapping[str, str]) -> Node:
    return Node(
        id=NODE,
        attachments=tuple(
            NetworkAttachment(network=Network(id=network), addresses=(address,))
            for network, address in addresses.items()
        ),
    )


def batch(got: Batch | int | None) -> Batch:
    assert isinstance(got, Batch), got
    return got


class TestComplete:
    def test_the_first_message_is_complete_and_may_be_empty(self) -> None:
        got = batch(Feed(NODE).complete([], {}, 0))
        assert got == Batch(kind=BatchKind.COMPLETE, applies_to="", results_in="1")

    def test_only_assigned_tasks_of_the_node_are_in_it(self) -> None:
        tasks = [
            task("new", state=TaskState.NEW),
            task("pending", state=TaskState.PENDING),
            task("assigned"),
            task("running", state=TaskState.RUNNING),
            task("foreign", node="other"),
        ]
        got = batch(Feed(NODE).complete(tasks, {}, 0))
        assert [each.id for each in got.updates] == ["assigned", "running"]

    def test_it_waits_until_an_address_has_settled(self) -> None:
        feed = Feed(NODE)
        feed.announced(node({"n": "10.0.1.3/24"}), 1000)
        tasks = [task("t", network="n")]
        again = feed.complete(tasks, {"n": "10.0.1.3/24"}, 1000)
        assert again == 1000 + SETTLE
        assert batch(feed.complete(tasks, {"n": "10.0.1.3/24"}, again)).updates == tuple(tasks)

    def test_it_does_not_wait_for_tasks_that_run(self) -> None:
        feed = Feed(NODE)
        tasks = [task("t", network="n", state=TaskState.RUNNING)]
        assert batch(feed.complete(tasks, {"n": "10.0.1.3/24"}, 0)).updates == tuple(tasks)


class TestOrder:
    """The ordering trap: address on the session first, task later."""

    def test_a_task_waits_for_its_address_and_then_150_ms(self) -> None:
        feed = Feed(NODE)
        feed.announced(node({}), 0)
        batch(feed.complete([], {}, 0))
        store = {"t": task("t", network="n")}
        addresses = {"n": "10.0.1.3/24"}
        feed.mark("t")
        now = BATCH_PAUSE
        again = feed.take(store.get, addresses, now)
        assert isinstance(again, int)
        assert again > now
        feed.announced(node(addresses), again)
        settled = again + SETTLE
        assert feed.take(store.get, addresses, again) == settled
        assert feed.take(store.get, addresses, settled - 1) == settled
        assert batch(feed.take(store.get, addresses, settled)).updates == (store["t"],)

    def test_our_own_agent_gets_it_at_once_after_the_address(self) -> None:
        feed = Feed(NODE, settle=0)
        batch(feed.complete([], {}, 0))
        store = {"t": task("t", network="n")}
        addresses = {"n": "10.0.1.3/24"}
        feed.mark("t")
        assert isinstance(feed.take(store.get, addresses, BATCH_PAUSE), int)
        feed.announced(node(addresses), BATCH_PAUSE)
        assert batch(feed.take(store.get, addresses, BATCH_PAUSE)).updates == (store["t"],)

    def test_an_address_announced_long_ago_costs_nothing(self) -> None:
        feed = Feed(NODE)
        addresses = {"n": "10.0.1.3/24"}
        feed.announced(node(addresses), 0)
        batch(feed.complete([], addresses, 0))
        feed.announced(node({**addresses, "m": "10.0.2.3/24"}), SETTLE)
        feed.mark("t")
        got = feed.take({"t": task("t", network="n")}.get, addresses, SETTLE + BATCH_PAUSE)
        assert batch(got).updates

    def test_a_changed_address_counts_as_new(self) -> None:
        feed = Feed(NODE)
        feed.announced(node({"n": "10.0.1.3/24"}), 0)
        batch(feed.complete([], {}, 0))
        feed.announced(node({"n": "10.0.1.9/24"}), SETTLE)
        feed.mark("t")
        got = feed.take(
            {"t": task("t", network="n")}.get, {"n": "10.0.1.9/24"}, SETTLE + BATCH_PAUSE
        )
        assert got == 2 * SETTLE

    def test_a_held_task_holds_no_other(self) -> None:
        feed = Feed(NODE)
        batch(feed.complete([], {}, 0))
        store = {"held": task("held", network="n"), "free": task("free")}
        feed.mark("held")
        feed.mark("free")
        got = batch(feed.take(store.get, {"n": "10.0.1.3/24"}, BATCH_PAUSE))
        assert [each.id for each in got.updates] == ["free"]
        feed.announced(node({"n": "10.0.1.3/24"}), BATCH_PAUSE)
        got = batch(feed.take(store.get, {"n": "10.0.1.3/24"}, BATCH_PAUSE + SETTLE))
        assert [each.id for each in got.updates] == ["held"]
        assert (got.applies_to, got.results_in) == ("2", "3")

    def test_a_withdrawn_address_waits_for_the_removal_of_its_task(self) -> None:
        feed = Feed(NODE)
        addresses = {"n": "10.0.1.3/24"}
        feed.announced(node(addresses), 0)
        batch(feed.complete([task("t", network="n", state=TaskState.RUNNING)], addresses, 0))
        feed.mark("t")
        assert feed.may_announce(node({}), 0) is not None
        assert batch(feed.take({}.get, {}, BATCH_PAUSE)).removals == ("t",)
        assert feed.may_announce(node({}), BATCH_PAUSE) is None

    def test_the_wait_for_a_removal_is_bounded(self) -> None:
        feed = Feed(NODE)
        feed.announced(node({"n": "10.0.1.3/24"}), 0)
        batch(feed.complete([task("t", network="n", state=TaskState.RUNNING)], {}, 0))
        again = feed.may_announce(node({}), 0)
        assert again == WITHDRAWAL_WAIT
        assert feed.may_announce(node({}), again) is None


class TestIncremental:
    def test_the_first_change_after_a_quiet_while_goes_out_at_once(self) -> None:
        feed = Feed(NODE)
        batch(feed.complete([], {}, 0))
        feed.mark("a")
        assert batch(feed.take({"a": task("a")}.get, {}, 0)).updates == (task("a"),)

    def test_what_changes_in_the_pause_after_a_message_goes_out_together_at_its_end(self) -> None:
        feed = Feed(NODE)
        batch(feed.complete([], {}, 0))
        store = {name: task(name) for name in "abc"}
        feed.mark("a")
        batch(feed.take(store.get, {}, 0))
        feed.mark("b")
        assert feed.take(store.get, {}, 1) == BATCH_PAUSE
        feed.mark("c")
        assert feed.take(store.get, {}, BATCH_PAUSE - 1) == BATCH_PAUSE
        got = batch(feed.take(store.get, {}, BATCH_PAUSE))
        assert [each.id for each in got.updates] == ["b", "c"]
        assert feed.take(store.get, {}, 2 * BATCH_PAUSE) is None

    def test_a_change_that_is_not_sent_begins_no_pause(self) -> None:
        feed = Feed(NODE)
        batch(feed.complete([task("t")], {}, 0))
        store = {"t": task("t", state=TaskState.RUNNING), "a": task("a")}
        feed.mark("t")
        assert feed.take(store.get, {}, 0) is None
        feed.mark("a")
        assert batch(feed.take(store.get, {}, 1)).updates == (store["a"],)

    def test_a_hundred_changes_go_at_once_and_no_more_in_one_message(self) -> None:
        feed = Feed(NODE)
        batch(feed.complete([], {}, 0))
        store = {str(i): task(str(i)) for i in range(BATCH_SIZE + 7)}
        for name in store:
            feed.mark(name)
        assert len(batch(feed.take(store.get, {}, 0)).updates) == BATCH_SIZE
        assert len(batch(feed.take(store.get, {}, BATCH_PAUSE)).updates) == 7

    def test_status_alone_is_not_sent(self) -> None:
        feed = Feed(NODE)
        batch(feed.complete([task("t")], {}, 0))
        feed.mark("t")
        assert feed.take({"t": task("t", state=TaskState.RUNNING)}.get, {}, BATCH_PAUSE) is None

    def test_a_desired_state_is_sent(self) -> None:
        feed = Feed(NODE)
        batch(feed.complete([task("t")], {}, 0))
        changed = task("t", desired=TaskState.SHUTDOWN)
        feed.mark("t")
        assert batch(feed.take({"t": changed}.get, {}, BATCH_PAUSE)).updates == (changed,)

    def test_a_task_that_came_and_went_unsent_is_not_mentioned(self) -> None:
        feed = Feed(NODE)
        batch(feed.complete([], {}, 0))
        feed.mark("t")
        assert feed.take({}.get, {}, BATCH_PAUSE) is None

    def test_a_reopened_stream_begins_again_with_everything(self) -> None:
        feed = Feed(NODE)
        batch(feed.complete([task("t")], {}, 0))
        feed.reopen()
        assert not feed.opened
        got = batch(feed.complete([task("t")], {}, 1))
        assert (got.kind, got.applies_to, got.results_in) == (BatchKind.COMPLETE, "", "1")


@given(st.data())
def test_a_node_that_applies_every_message_knows_exactly_its_tasks(data: st.DataObject) -> None:
    """No gaps, and in the end the node's list is the store's, whatever changed in which order."""
    feed = Feed(NODE)
    store: dict[str, Task] = {}
    addresses: dict[str, str] = {}
    known: dict[str, Task] = {}
    reference = ""
    now = 0
    pending = node({})

    def apply(got: Batch) -> None:
        nonlocal known, reference
        assert got.applies_to == reference
        if got.kind is BatchKind.COMPLETE:
            known = {}
        for each in got.updates:
            for attachment in each.networks:
                wanted = addresses.get(attachment.network.id)
                if wanted and each.status.state < TaskState.STARTING and each.id not in known:
                    assert feed._announced[attachment.network.id][0] == wanted
                    assert now - feed._announced[attachment.network.id][1] >= SETTLE
            known[each.id] = each
        for name in got.removals:
            assert name in known
            del known[name]
        reference = got.results_in

    def settle() -> None:
        nonlocal now
        for _ in range(50):
            if feed.may_announce(pending, now) is None:
                feed.announced(pending, now)
            got = (
                feed.take(store.get, addresses, now)
                if feed.opened
                else feed.complete(store.values(), addresses, now)
            )
            if got is None:
                return
            if isinstance(got, int):
                assert got >= now
                now = max(got, now + 1)
            else:
                apply(got)
        raise AssertionError("never came to rest")

    settle()
    for _ in range(data.draw(st.integers(0, 25))):
        now += data.draw(st.sampled_from([0, 1, BATCH_PAUSE, SETTLE]))
        name = data.draw(st.sampled_from("abcdef"))
        if name in store and data.draw(st.booleans()):
            del store[name]
        else:
            network = data.draw(st.sampled_from(["", "n", "m"]))
            state = data.draw(
                st.sampled_from([TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING])
            )
            store[name] = task(name, network=network, state=state)
        addresses = {
            attachment.network.id: f"10.0.0.{len(attachment.network.id)}/24"
            for each in store.values()
            for attachment in each.networks
        }
        pending = node(addresses)
        feed.mark(name)
        if data.draw(st.booleans()):
            settle()
        else:
            got = feed.take(store.get, addresses, now)
            if isinstance(got, Batch):
                apply(got)
    settle()
    expected = {name for name, each in store.items() if each.status.state >= TaskState.ASSIGNED}
    assert known.keys() == expected
    assert load_balancers(pending) == {key: value for key, (value, _) in feed._announced.items()}
