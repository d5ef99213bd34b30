"""A client that reads one store and answers its messages, and what its log has then."""

from __future__ import annotations

from llmdo.storage.livestore.frames import NewEvent
from llmdo.storage.livestore.places import StorePlace
from llmdo.storage.livestore.stores import LiveStores

SECRET = {"authToken": "not to be shown: 100 %"}


class Client:
    """Reads one store, and knows which messages have an answer."""

    def __init__(self, backend, store="s", cursor=None, payload=SECRET, name="llmdo"):
        self.answered: set[str] = set()
        self.resets: list[str] = []
        self.events = []
        self.store = store  # before its events can come
        place = StorePlace(backend.url, store, payload)
        self.stores = LiveStores([place], {store: name}, {store: cursor} if cursor else {}, self._see, self._reset)

    def _see(self, store, event):
        assert store == self.store
        if event.name == "Answer":
            self.answered.add(event.args["to"])
        return event

    def _reset(self, store):
        self.resets.append(store)
        self.answered.clear()

    def read(self, count):
        """The next events."""
        taken = []
        for _ in range(60):
            taken += self.stores.take(1_000, 1.0)
            if len(taken) >= count:
                break
        self.events += taken
        return [one.event.args.get("id") for one in taken]

    def answer(self, message):
        """Answers a message if nobody has."""
        event = NewEvent("Answer", {"id": f"a-{message}", "to": message})
        return self.stores.push(self.store, lambda: [] if message in self.answered else [event])


def ids(backend, store="s", name="Answer"):
    return [event["args"]["to"] for event in backend.logs[store] if event["name"] == name]


def contiguous(backend, store="s"):
    numbers = [(event["parentSeqNum"], event["seqNum"]) for event in backend.logs[store]]
    return numbers == [(at, at + 1) for at in range(len(numbers))]
