import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from llmdo.storage.chat import reading as chat_reading
from llmdo.storage.chat.log import ChatLog, mark_name, open_log
from llmdo.storage.chat.reading import ConversationCache, ConversationReader
from llmdo.storage.chat.records import ChatMessage, DamagedLog, LoggedAnswer, Trace, cleaned, safe
from llmdo.storage.errors import AlreadyExists, ObjectNotFound
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.store import locate_folder


def message(identity="m1", conversation="c1", created=1.0, **fields):
    given = {"text": f"What about {identity}?", "role": "user", "arrived": 100.0} | fields
    return ChatMessage(
        event={"name": "v1.ChatMessageSent", "args": {"id": identity}, "seqNum": 7},
        id=identity,
        conversation=conversation,
        created=created,
        **given,
    )


def answer(to="m1", conversation="c1", text="This.", response_id="r1", **fields):
    args = {"id": response_id, "message": text}
    return LoggedAnswer(
        conversation=conversation,
        message_id=to,
        events=({"name": "v1.LLMResponseStarted", "args": {}}, {"name": "v1.LLMResponseReceived", "args": args}),
        **fields,
    )


def alive(run_id):
    return True


def dead(run_id):
    return False


class Counted:
    """A store that counts what it is asked."""

    def __init__(self, store):
        self._store = store
        self.calls = []

    def __getattr__(self, name):
        value = getattr(self._store, name)
        if not callable(value):
            return value

        def call(*args):
            self.calls.append((name, args[0]))
            return value(*args)

        return call


@pytest.fixture(params=["folder", "r2"])
def place(request, tmp_path):
    """A local folder, and the local R2."""
    return LocalStore(tmp_path / "log") if request.param == "folder" else request.getfixturevalue("store")


@pytest.fixture(params=["", "chat/"])
def log(request, place):
    return ChatLog(place, request.param)


def race(works):
    """Runs functions at the same moment, each in its thread; what they return."""
    barrier = threading.Barrier(len(works))

    def one(work):
        barrier.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(one, works))


def test_a_message_is_new_once_and_open_until_it_is_answered_and_pushed(log):
    first = message()
    assert log.add(first) == "new"
    assert log.add(message(arrived=200.0)) == "open"
    assert list(log.open_messages()) == [first]
    assert log.count_open() == 1
    log.answer(answer())
    assert log.add(message(arrived=300.0)) == "done"
    assert list(log.open_messages()) == [first]  # its answer is not pushed yet
    log.close(first, 500.0)
    assert log.add(message(arrived=600.0)) == "done"
    assert list(log.open_messages()) == []
    assert log.count_open() == 0


def test_the_first_copy_of_a_message_stays(log):
    log.add(message(text="Which is it?"))
    log.add(message(text="Another?", arrived=200.0))
    assert [one.text for one in log.conversation("c1").messages] == ["Which is it?"]


def test_a_message_whose_mark_was_never_written_is_marked_when_it_comes_again(log, monkeypatch):
    monkeypatch.setattr(ChatLog, "_mark_key", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        log.add(message())
    monkeypatch.undo()
    assert list(log.open_messages()) == []
    assert log.add(message(arrived=200.0)) == "open"
    assert [one.id for one in log.open_messages()] == ["m1"]


def test_messages_that_want_no_answer_are_logged_and_not_marked(log):
    assert log.add(message("m1", role="assistant")) == "done"
    assert log.add(message("m2", role="system")) == "done"
    assert log.add(message("m3"), wanted=False) == "done"
    assert list(log.open_messages()) == []
    assert [one.id for one in log.conversation("c1").messages] == ["m1", "m2", "m3"]
    assert log.add(message("m3", arrived=200.0)) == "open"  # a later run wants it


def test_the_sweep_reads_nothing_of_what_is_known(place):
    counted = Counted(place)
    log = ChatLog(counted, "")
    log.add(message("m1"))
    log.add(message("m2"))
    counted.calls.clear()
    assert [one.id for one in log.open_messages({mark_name(message("m1"))})] == ["m2"]
    assert [call for call in counted.calls if call[0] == "read"] == [("read", "c1/messages/m2.json")]


def test_a_mark_whose_message_was_removed_goes(log, place):
    log.add(message("m1"))
    log.add(message("m2"))
    (removed,) = (info.key for info in place.list("") if info.key.endswith("messages/m1.json"))
    place.delete(removed)
    assert [one.id for one in log.open_messages()] == ["m2"]
    assert [info.key for info in place.list("") if "_open/" in info.key and "m1" in info.key] == []


def test_a_damaged_message_hides_no_other_one_from_the_sweep(log, place, caplog):
    for name in ("m1", "m2", "m3"):
        log.add(message(name))
    (key,) = (info.key for info in place.list("") if info.key.endswith("messages/m2.json"))
    place.put(key, b'{"version": 99}')
    assert [one.id for one in log.open_messages()] == ["m1", "m3"]
    assert key in caplog.text and "move it away" in caplog.text
    with pytest.raises(DamagedLog, match=r"messages/m2\.json is not a ChatMessage"):
        ChatLog(place, key.removesuffix("c1/messages/m2.json")).conversation("c1")


def test_messages_come_in_the_order_of_creation_then_arrival_then_id(log):
    given = [("d", 2.0, 50.0), ("c", 1.0, 51.0), ("b", 1.0, 51.0), ("a", 1.0, 52.0), ("e", 0.5, 99.0)]
    for identity, created, arrived in given:
        log.add(message(identity, created=created, arrived=arrived))
    conversation = log.conversation("c1")
    assert [one.id for one in conversation.messages] == ["e", "b", "c", "a", "d"]
    assert [one.id for one, _ in conversation.before(message("a", created=1.0, arrived=52.0))] == ["e", "b", "c"]


def test_a_conversation_pairs_messages_with_answers_and_says_what_is_unanswered(log):
    for number in (1, 2, 3, 4):
        log.add(message(f"m{number}", created=float(number), role="system" if number == 4 else "user"))
    log.add(message("m1", "c2"))
    log.answer(answer("m1", text="One."))
    log.answer(answer("m2", text="Sorry.", failed=True))
    conversation = log.conversation("c1")
    assert [(one.id, text) for one, text in conversation.before(message("m5", created=5.0))] == [
        ("m1", "One."),
        ("m2", None),
        ("m3", None),
        ("m4", None),
    ]
    assert [one.id for one in conversation.unanswered] == ["m3"]
    assert conversation.answers["m1"] == answer("m1", text="One.")


def test_a_second_look_is_one_listing_and_reads_only_what_is_new(place):
    counted = Counted(place)
    log, writer = ChatLog(counted, "chat/"), ChatLog(place, "chat/")
    for number in range(5):
        writer.add(message(f"m{number}", created=float(number)))
    writer.answer(answer("m0"))
    writer.take("c1", "run-1", alive)
    assert len(log.conversation("c1").messages) == 5
    counted.calls.clear()
    before = log.conversation("c1")
    assert counted.calls == [("versions", "chat/c1/")]
    writer.add(message("m9", created=9.0))
    writer.answer(answer("m1"))
    counted.calls.clear()
    after = log.conversation("c1")
    assert counted.calls[0] == ("versions", "chat/c1/")
    assert sorted(counted.calls[1:]) == [("read", "chat/c1/answers/m1.json"), ("read", "chat/c1/messages/m9.json")]
    assert (len(before.messages), len(after.messages), list(after.answers)) == (5, 6, ["m0", "m1"])


def test_what_a_log_has_answered_itself_is_not_read_and_is_as_if_read(place):
    counted = Counted(place)
    log = ChatLog(counted, "chat/")
    for number in range(3):
        log.add(message(f"m{number}", created=float(number)))
    log.conversation("c1")
    log.answer(answer("m0", text="Zero."))
    log.answer(answer("m1", text="One."))
    counted.calls.clear()
    own = log.conversation("c1")
    assert counted.calls == [("versions", "chat/c1/")]
    assert own == ChatLog(place, "chat/").conversation("c1")
    assert [one.id for one in own.unanswered] == ["m2"]


def test_the_log_of_a_place_is_one_for_all_steps_of_a_process(tmp_path):
    places = locate_folder(str(tmp_path / "one")), locate_folder(str(tmp_path / "two"))
    assert open_log(places[0]) is open_log(places[0])
    assert open_log(places[0]) is not open_log(places[1])
    open_log(places[0]).add(message("m1"))
    assert [one.id for one in open_log(places[0]).open_messages()] == ["m1"]
    assert not list(open_log(places[1]).open_messages())


def test_what_was_written_and_is_never_looked_at_is_forgotten(place, monkeypatch):
    monkeypatch.setattr(chat_reading, "_WRITTEN", 2)
    counted = Counted(place)
    log = ChatLog(counted, "")
    for name in ("c1", "c2", "c3"):
        log.add(message("m1", name))
    counted.calls.clear()
    for name in ("c1", "c2", "c3"):
        assert len(log.conversation(name).messages) == 1
    assert [key for call, key in counted.calls if call == "read"] == ["c1/messages/m1.json"]


def test_an_own_answer_that_was_replaced_or_removed_since_is_not_believed(log, place):
    log.add(message("m1"))
    log.add(message("m2", created=2.0))
    log.conversation("c1")
    log.answer(answer("m1", text="Mine."))
    log.answer(answer("m2", text="Mine too."))
    keys = {info.key.rpartition("/")[2]: info.key for info in place.list("") if "/answers/" in info.key}
    place.put(keys["m1.json"], answer("m1", text="Another's, longer.").model_dump_json().encode())
    place.delete(keys["m2.json"])
    found = log.conversation("c1").answers
    # In a folder only a listing with each file's time would show it: the next process does.
    told = "Mine." if isinstance(place, LocalStore) else "Another's, longer."
    assert {name: one.text for name, one in found.items()} == {"m1": told}


def test_what_is_removed_or_replaced_in_the_store_is_not_remembered(log, place):
    log.add(message("m1"))
    log.add(message("m2", created=2.0))
    assert len(log.conversation("c1").messages) == 2
    keys = {info.key.rpartition("/")[2]: info.key for info in place.list("") if "/messages/" in info.key}
    place.delete(keys["m1.json"])
    assert [one.id for one in log.conversation("c1").messages] == ["m2"]
    place.put(keys["m2.json"], message("m2", text="Corrected.").model_dump_json().encode())
    told = "What about m2?" if isinstance(place, LocalStore) else "Corrected."  # as above
    assert [one.text for one in log.conversation("c1").messages] == [told]
    again = ChatLog(place, keys["m2.json"].removesuffix("c1/messages/m2.json"))
    assert [one.text for one in again.conversation("c1").messages] == ["Corrected."]


def test_the_memory_of_conversations_is_bounded_and_the_last_ones_stay(place):
    log, counted = ChatLog(place, ""), Counted(place)
    for name in ("c1", "c2", "c3"):
        log.add(message("m1", name, text="x" * 1000))
    conversations = ConversationReader(counted, "", ConversationCache(3000))

    def reads(name):
        counted.calls.clear()
        conversations.look(name)
        return len([call for call in counted.calls if call[0] == "read"])

    assert [reads(name) for name in ("c1", "c2", "c1", "c3", "c1", "c2")] == [1, 1, 0, 1, 0, 1]


def test_all_logs_of_a_process_have_one_memory_of_conversations(place):
    """A run may have the logs of a hundred stores."""
    counted, cache = Counted(place), ConversationCache(3000)
    readers = {f"s{number}/": ConversationReader(counted, f"s{number}/", cache) for number in range(3)}
    for prefix in readers:
        ChatLog(place, prefix).add(message("m1", text=f"of {prefix}" + "x" * 1000))

    def look(prefix):
        counted.calls.clear()
        (found,) = readers[prefix].look("c1").messages
        return found.text[:5], len([call for call in counted.calls if call[0] == "read"])

    assert [look(f"s{number}/") for number in (0, 1, 0, 2, 0, 1)] == [
        ("of s0", 1),
        ("of s1", 1),
        ("of s0", 0),
        ("of s2", 1),
        ("of s0", 0),
        ("of s1", 1),
    ]
    assert ConversationReader(place, "s0/")._cache is ConversationReader(place, "s1/")._cache


def test_a_conversation_larger_than_the_memory_is_still_remembered_while_it_is_the_last(place):
    log, counted = ChatLog(place, ""), Counted(place)
    log.add(message("m1", text="x" * 5000))
    conversations = ConversationReader(counted, "", ConversationCache(1000))
    conversations.look("c1")
    counted.calls.clear()
    conversations.look("c1")
    assert counted.calls == [("versions", "c1/")]


def test_one_answer_counts_and_the_loser_gets_to_know_it(log):
    first, second = answer(text="First."), answer(text="Second.")
    assert log.answer(first) == first
    assert log.answer(second) == first
    assert log.conversation("c1").answers["m1"].text == "First."


def test_what_a_model_may_say_can_be_logged(log):
    odd = answer(text="half \ud83d", usage={"cost": float("inf")}, error="cut \ud83d\ude00 off \ud83d")
    assert log.answer(odd) == odd
    found = log.conversation("c1").answers["m1"]
    assert found == odd
    assert found.error == "cut 😀 off �" == cleaned("cut \ud83d\ude00 off \ud83d")


def test_two_logs_that_race_add_each_message_once_and_agree_on_the_answers(place):
    logs = [ChatLog(place, "") for _ in range(4)]
    names = [f"m{number}" for number in range(6)]

    def sent(name, by):
        return message(name, created=float(name[1:]), arrived=by)

    added = race([lambda log=log, n=n: [log.add(sent(name, n)) for name in names] for n, log in enumerate(logs)])
    assert [sorted(found).count("new") for found in zip(*added, strict=True)] == [1] * len(names)
    assert {found for column in added for found in column} == {"new", "open"}
    answers = race(
        [
            lambda log=log, n=n: [log.answer(answer(name, text=f"By {n}.")) for name in names]
            for n, log in enumerate(logs)
        ]
    )
    assert all(column == answers[0] for column in answers)
    looks = race([lambda log=log: log.conversation("c1") for log in logs])
    assert all(look == looks[0] for look in looks)
    assert [one.message_id for one in answers[0]] == [one.id for one in looks[0].messages] == names
    assert [one.id for one in logs[0].open_messages()] == names


def test_of_logs_that_race_for_a_conversation_one_gets_it(place):
    for number in range(5):
        logs, name = [ChatLog(place, "") for _ in range(4)], f"c{number}"
        taken = race([partial(log.take, name, f"run-{n}", alive) for n, log in enumerate(logs)])
        assert taken.count(True) == 1
        race([partial(log.release, name) for log, got in zip(logs, taken, strict=True) if not got])
        assert not ChatLog(place, "").take(name, "run-9", alive)
        logs[taken.index(True)].release(name)
        assert ChatLog(place, "").take(name, "run-9", alive)


def test_of_logs_that_race_for_a_dead_runs_conversation_one_gets_it(place):
    for number in range(5):
        logs, name = [ChatLog(place, "") for _ in range(3)], f"c{number}"
        ChatLog(place, "").take(name, "run-dead", alive)
        lives = "run-dead".__ne__
        assert race([partial(log.take, name, f"run-{n}", lives) for n, log in enumerate(logs)]).count(True) == 1


def test_a_conversation_is_its_owners_until_it_is_released(log, place):
    other = ChatLog(place, log._prefix)
    assert log.take("c1", "run-1", alive)
    assert log.take("c1", "run-1", alive)  # again
    assert not other.take("c1", "run-2", alive)
    assert not other.take("c1", "run-1", alive)  # another process of the same run
    other.release("c1")
    assert not other.take("c1", "run-2", alive)
    log.release("c1")
    log.release("c1")
    assert other.take("c1", "run-2", alive)
    log.release("c1")
    assert not log.take("c1", "run-1", alive)


def test_the_next_run_of_a_process_keeps_what_the_process_had(log, place):
    assert log.take("c1", "run-1", alive)
    assert log.take("c1", "run-2", alive)
    (key,) = (info.key for info in place.list("") if info.key.endswith("_owner.json"))
    assert json.loads(place.read(key)[0])["run_id"] == "run-2"


def test_a_dead_runs_conversation_and_a_damaged_owner_are_taken_over(log, place):
    ChatLog(place, log._prefix).take("c1", "run-1", alive)
    assert log.take("c1", "run-2", dead)
    place.put(f"{log._prefix}c2/_owner.json", b"torn")
    assert log.take("c2", "run-2", alive)


def test_a_lost_reply_is_not_taken_for_somebody_elses_write(place, monkeypatch):
    log = ChatLog(place, "")
    put = type(place).put_if_absent

    def lost_reply(self, key, body):
        put(self, key, body)
        raise AlreadyExists(key)

    monkeypatch.setattr(type(place), "put_if_absent", lost_reply)
    assert log.add(message()) == "open"  # is never refused because many wait
    assert log.take("c1", "run-1", alive)
    assert log.answer(answer(text="Mine.")).text == "Mine."
    monkeypatch.undo()
    assert log.find("m1", "c1")[0].trace == Trace()  # no duplicate


def test_a_response_that_comes_in_is_an_answer_and_closes_its_message(log):
    log.add(message("m1"))
    log.adopt(answer("m1", text="By another service."), 2.0)
    assert log.conversation("c1").answers["m1"].text == "By another service."
    assert list(log.open_messages()) == []
    log.adopt(answer("m2", text="Before its question."), 2.0)
    log.add(message("m2", created=2.0))
    assert log.conversation("c1").unanswered == ()


def test_a_response_of_others_leaves_our_own_answer_to_be_pushed(log):
    log.add(message("m1"))
    log.answer(answer("m1", text="Ours.", response_id="ours"))
    log.adopt(answer("m1", text="Theirs.", response_id="theirs"), 2.0)
    assert [one.id for one in log.open_messages()] == ["m1"]
    log.adopt(answer("m1", text="Ours.", response_id="ours"), 2.0)  # it came back, so it was pushed
    assert list(log.open_messages()) == []
    assert log.conversation("c1").answers["m1"].text == "Ours."


def test_a_response_that_is_final_leaves_nothing_to_be_pushed(log):
    log.add(message("m1"))
    log.answer(answer("m1", text="Ours.", response_id="ours"))
    log.adopt(answer("m1", text="Theirs.", response_id="theirs"), 2.0, final=True)
    assert list(log.open_messages()) == []


def test_a_response_that_names_no_message_answers_the_last_one_before_it(log):
    for number in (1, 2, 5):
        log.add(message(f"m{number}", created=float(number)))
    log.adopt(answer("", response_id="r2", text="To the second."), 3.0)
    log.adopt(answer("", response_id="r2", text="To the second."), 3.0)  # again
    conversation = log.conversation("c1")
    assert [(one.id, text) for one, text in conversation.before(message("m9", created=9.0))] == [
        ("m1", None),
        ("m2", "To the second."),
        ("m5", None),
    ]
    assert [one.id for one in log.open_messages()] == ["m1", "m5"]


def test_a_response_to_nothing_is_a_message_of_the_assistant(log):
    log.adopt(answer("", response_id="r1", text="Welcome!"), 3.0)
    log.adopt(answer("", response_id="r1", text="Welcome!"), 3.0)
    (found,) = log.conversation("c1").messages
    assert (found.id, found.role, found.text, found.created) == ("r1", "assistant", "Welcome!", 3.0)
    assert list(log.open_messages()) == []


def test_a_trace_tells_of_duplicates_and_the_push_in_order(log):
    log.add(message("m1", arrived=100.0))
    log.add(message("m1", arrived=101.0))
    log.note(message("m1"), "queued", 102.0)
    log.close(message("m1"), 103.0)
    (found,) = log.find("m1")
    assert found.trace.stages == (("duplicate", 101.0), ("queued", 102.0), ("pushed", 103.0))


def test_a_trace_does_not_grow_for_ever_and_keeps_its_begin_and_its_end(place, monkeypatch):
    monkeypatch.setattr("llmdo.storage.chat.log._STAGES", 6)
    log = ChatLog(place, "")
    for number in range(10):
        log.note(message(), "duplicate", float(number))
    (stages,) = [Trace.model_validate_json(place.read("_traces/c1/m1.json")[0]).stages]
    assert [at for _, at in stages] == [0.0, 1.0, 2.0, 7.0, 8.0, 9.0]


def test_notes_that_race_are_all_kept(place):
    race([lambda n=n: ChatLog(place, "").note(message(), "duplicate", float(n)) for n in range(6)])
    stages = Trace.model_validate_json(place.read("_traces/c1/m1.json")[0]).stages
    assert sorted(at for _, at in stages) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_message_is_found_by_its_id_in_every_conversation_that_has_it(log):
    log.add(message("m1", "c1"))
    log.add(message("m1", "messages"))
    log.add(message("m1", "_open"))
    log.answer(answer("m1", "messages"))
    log.close(message("m1", "messages"), 5.0)
    found = {one.message.conversation: (one.answer is not None, one.open) for one in log.find("m1")}
    assert found == {"c1": (False, True), "messages": (True, False), "_open": (False, True)}
    (one,) = log.find("m1", "messages")
    assert one.answer == answer("m1", "messages")
    assert log.find("m2") == log.find("m1", "c9") == []


def test_other_events_are_kept_once_and_what_is_no_event_is_buried_with_its_reason(log, place):
    event = {"name": "v1.TaskCreated", "args": {"title": "ü"}}
    log.keep(event)
    log.keep(event)
    for body in (b"\xff{", {"name": 1}, "text"):
        log.bury(body, "not valid JSON")
    kept = [json.loads(place.read(info.key)[0]) for info in place.list(f"{log._prefix}_events/")]
    letters = [json.loads(place.read(info.key)[0]) for info in place.list(f"{log._prefix}_dead/")]
    assert kept == [event]
    assert {letter["reason"] for letter in letters} == {"not valid JSON"}
    bodies = [letter["body"] for letter in letters]
    assert all(body in bodies for body in ("\\xff{", {"name": 1}, "text"))
    assert log.conversation("_events").messages == ()


@pytest.mark.parametrize(
    "identity", ["a/../../b", "..", "", "_open", "-x", "ü", "x" * 65, "a b", "a\n", "0\0", "c1.json", "~x"]
)
def test_odd_ids_are_data_and_stay_apart(log, identity):
    assert log.add(message("m1", identity)) == log.add(message(identity, "c1")) == log.add(message("m1", "c1")) == "new"
    log.answer(answer("m1", identity, "To the odd one."))
    assert log.conversation(identity).answers["m1"].text == "To the odd one."
    assert {one.id for one in log.conversation("c1").messages} == {identity, "m1"}
    assert log.conversation("c1").answers == {}


def test_plain_ids_can_be_read_in_the_keys():
    assert safe("3f2504e0-4f89-41d3-9a0c-0305e82c3301") == "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
    assert safe("V1StGXR8_Z5jdHi6B-myT") == "V1StGXR8_Z5jdHi6B-myT"
    assert safe("_open") != "_open"
    assert len({safe(one) for one in ("a/b", "a:b", "a b", "", "ab", "_", "é")}) == 7


def test_a_store_that_lists_what_is_removed_at_once_breaks_no_look(place, monkeypatch):
    log, writer = ChatLog(place, ""), ChatLog(place, "")
    writer.add(message("m1"))
    writer.add(message("m2", created=2.0))
    read = type(place).read

    def gone(self, key):
        if key.endswith("m1.json"):
            raise ObjectNotFound(key)
        return read(self, key)

    monkeypatch.setattr(type(place), "read", gone)
    assert [one.id for one in log.conversation("c1").messages] == ["m2"]
