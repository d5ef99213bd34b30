from llmdo.backends.money.estimates import Estimates
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage
from llmdo.storage.chat.records import ChatMessage, Conversation, LoggedAnswer
from llmdo.transforms.chat.history import history

MODEL = "gpt-4o"


def message(identity, text=None, role="user", context=""):
    created = float(identity.strip("mas") or 0)
    return ChatMessage(
        event={},
        id=identity,
        conversation="c1",
        text=f"question {identity}" if text is None else text,
        role=role,
        created=created,
        arrived=created,
        context=context,
    )


def build(earlier, new=None, *, system="Be kind.", context_tokens=None, max_tokens=100, estimates=None):
    return history(
        system,
        earlier,
        new or message("m9"),
        model=MODEL,
        context_tokens=context_tokens,
        max_tokens=max_tokens,
        estimates=estimates or Estimates(),
    )


def plain(built):
    return [(one.role, one.content) for one in built.messages]


def used(built, estimates):
    return estimates.most(ChatRequest(MODEL, built.messages, {"max_tokens": 100})).input_tokens


def long_talk(turns, size=4000):
    """Pairs of ``size`` bytes each, about half of it in the answer."""
    return [(message(f"m{n}", f"{n} " + "q" * (size // 2)), "a" * (size // 2)) for n in range(1, turns + 1)]


def test_the_second_answer_gets_the_first_turn_and_the_new_message_once():
    built = build([(message("m1"), "answer one"), (message("m2"), "answer two")], message("m3"))
    assert plain(built) == [
        ("system", "Be kind."),
        ("user", "question m1"),
        ("assistant", "answer one"),
        ("user", "question m2"),
        ("assistant", "answer two"),
        ("user", "question m3"),
    ]
    assert built.ids == ("m1", "m2")
    assert built.warnings == ()


def test_the_new_message_is_sent_once_even_where_the_log_has_it_already():
    new = message("m2")
    built = build([(message("m1"), "answer one"), (new, None)], new)
    assert [one.content for one in built.messages].count("question m2") == 1
    assert built.ids == ("m1",)


def test_of_a_failed_answer_the_question_stays():
    built = build([(message("m1"), None), (message("m2"), "answer two")], message("m3"))
    assert [content for _, content in plain(built)[1:]] == ["question m1", "question m2", "answer two", "question m3"]
    assert built.ids == ("m1", "m2")


def test_the_log_s_own_messages_keep_their_roles_and_places():
    earlier = [
        (message("a1", "Hello!", "assistant"), None),
        (message("m2"), "answer two"),
        (message("s3", "Use metric units.", "system"), None),
    ]
    built = build(earlier)
    assert plain(built)[1:] == [
        ("assistant", "Hello!"),
        ("user", "question m2"),
        ("assistant", "answer two"),
        ("system", "Use metric units."),
        ("user", "question m9"),
    ]
    assert built.ids == ("a1", "m2", "s3")


def test_nothing_empty_is_sent():
    built = build([(message("m1", "  \n"), None), (message("m2"), "  ")], system=" ")
    assert plain(built) == [("user", "question m2"), ("user", "question m9")]
    assert built.ids == ("m2",)


def test_what_the_user_sees_stands_behind_the_system_prompt_and_only_that_of_the_new_message():
    earlier = [(message("m1", context='{"page": "old"}'), "answer one")]
    built = build(earlier, message("m9", context='{"page": "board"}'))
    first, *rest = built.messages
    assert first.role == "system"
    assert first.content.startswith("Be kind.\n\n")
    assert first.content.endswith('\n{"page": "board"}')
    assert all("page" not in one.content for one in rest)
    alone = build([], message("m9", context='{"page": "board"}'), system="")
    assert [one.role for one in alone.messages] == ["system", "user"]


def test_what_does_not_fit_is_left_out_from_the_front_in_whole_turns_and_said():
    estimates, earlier = Estimates(), long_talk(8)
    whole = build(earlier, estimates=estimates)
    for context_tokens in range(1200, used(whole, estimates) + 100, 37):
        built = build(earlier, context_tokens=context_tokens, estimates=estimates)
        kept = len(built.ids)
        assert built.ids == tuple(f"m{n}" for n in range(9 - kept, 9))
        assert [one.role for one in built.messages] == ["system", *["user", "assistant"] * kept, "user"]
        assert used(built, estimates) + 100 <= context_tokens
        if kept < 8:
            (warning,) = built.warnings
            assert f"the first {8 - kept} of 8 earlier turns" in warning and str(context_tokens) in warning
            more = build(earlier[7 - kept :], estimates=estimates)
            assert used(more, estimates) + 100 > context_tokens  # no turn more than needed was left out
        else:
            assert built == whole


def test_the_answer_s_tokens_belong_to_the_context():
    earlier = long_talk(8)
    kept = [len(build(earlier, context_tokens=8000, max_tokens=most).ids) for most in (100, 4000, 7000)]
    assert kept[0] > kept[1] > kept[2]


def test_system_messages_stay_when_the_turns_around_them_go():
    rule = message("s1", "Use metric units.", "system")
    worker = long_talk(4)
    earlier = [*worker[:1], (rule, None), *worker[1:]]
    built = build(earlier, context_tokens=1500)
    assert built.ids == ("s1", "m4")
    assert plain(built)[:2] == [("system", "Be kind."), ("system", "Use metric units.")]


def test_a_turn_is_a_question_and_all_until_the_next_one():
    worker = long_talk(2)
    follow_up = (message("a1", "One thing more." + "x" * 2000, "assistant"), None)
    earlier = [(message("a0", "Hello!", "assistant"), None), worker[0], follow_up, worker[1]]
    built = build(earlier, context_tokens=1700)
    assert built.ids == ("m2",)
    (warning,) = built.warnings
    assert "the first 2 of 3 earlier turns" in warning


def test_the_new_message_stays_whole_even_where_it_alone_does_not_fit():
    new = message("m9", "x" * 9000)
    built = build(long_talk(3), new, context_tokens=500)
    assert built.ids == ()
    assert built.messages == (Message("system", "Be kind."), Message("user", "x" * 9000))
    assert len(built.warnings) == 1
    assert build([], new, context_tokens=500).warnings == ()


def test_an_unknown_context_trims_nothing():
    built = build(long_talk(200), message("m999"))
    assert (len(built.ids), built.warnings) == (200, ())


def test_what_calls_really_used_makes_it_trim_sooner():
    estimates, earlier = Estimates(), long_talk(8)
    before = build(earlier, context_tokens=6000, estimates=estimates)
    request = ChatRequest(MODEL, before.messages, {"max_tokens": 100})
    twice = 2 * used(before, estimates)
    estimates.learn(request, ChatResponse("ok", "stop", Usage(twice, 5), MODEL))
    after = build(earlier, context_tokens=6000, estimates=estimates)
    assert 0 < len(after.ids) <= len(before.ids) // 2 + 1 < len(before.ids)


def test_it_takes_what_a_conversation_gives():
    first, second, late = message("m1"), message("m3"), message("m2")
    response = {"name": "v1.LLMResponseReceived", "args": {"id": "r", "message": "answer one"}}
    answers = {"m1": LoggedAnswer(conversation="c1", message_id="m1", events=(response,))}
    conversation = Conversation((first, late, second), answers)
    built = build(conversation.before(second), second)
    assert [content for _, content in plain(built)[1:]] == ["question m1", "answer one", "question m2", "question m3"]
    assert build(conversation.before(late), late).ids == ("m1",)
